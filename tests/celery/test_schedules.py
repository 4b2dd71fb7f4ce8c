"""Schedules with real workers and beats: each tick fires once, whoever drives them and whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import ROOT
from tests.waiting import eventually

SECOND = timedelta(seconds=1)


def gaps(ticks: list[datetime]) -> list[tuple[datetime, datetime]]:
    """Where an instant is missing, doubled or out of order among ticks that should be a second apart."""
    return [(one, other) for one, other in pairwise(ticks) if other - one != SECOND]


@contextmanager
def beat(bank: Bank, number: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """`celery beat -S entity` as a process of its own."""
    paths = [str(ROOT), *filter(None, sys.path)]
    environment = {**os.environ, **bank.environment(), **variables, "PYTHONPATH": os.pathsep.join(paths)}
    command = ["-m", "celery", "-A", f"tests.celery.apps.{bank.app_name}", "beat", "-S", "entity", "-l", "INFO"]
    log_file = bank.folder / f"beat{number}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--pidfile=", "--max-interval", "1"],
            cwd=bank.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: "schedules of the code are stored" in log_file.read_text(), timeout_s=60)
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(30)


@pytest.mark.parametrize("broker", ["amqp", "folder"])
def test_a_schedule_in_code_is_stored_by_a_worker_and_fires_at_its_seconds(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, app_name="clockwork", entity_shards_per_group=4)
    clock = bank.Clock.ref("code")
    bank.worker(pool="threads", variables={"CLOCKWORK": "code"})

    eventually(lambda: len(bank.entities.state(clock).ticks) >= 4)
    ticks: list[datetime] = bank.entities.state(clock).ticks

    assert gaps(ticks) == []
    assert all(one.microsecond == 0 for one in ticks)
    status = bank.entities.schedule_of("every-second")
    assert (status.origin, status.status) == ("code", "active")


def kill_schedulers(bank: Bank, kills: int, ticks: int, seed: int) -> list[datetime]:
    """Kill runner processes with SIGKILL, one after the other, at random moments of `ticks` seconds; what fired."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    clock = bank.Clock.ref("code")
    workers = [bank.worker(pool="threads", variables={"CLOCKWORK": "code"}) for _ in range(2)]
    begun: list[datetime] = eventually(lambda: bank.entities.state(clock).ticks)
    ends = begun[0] + timedelta(seconds=ticks)
    for after_s in sorted(chance.uniform(0.5, ticks - 3) for _ in range(kills)):
        moment = begun[0] + timedelta(seconds=after_s)
        eventually(lambda moment=moment: datetime.now(UTC) >= moment, timeout_s=ticks + 30)  # type: ignore[misc]
        # The scheduler is one of the two; the other is killed now and then as well.
        [pid] = eventually(lambda: chance.choice(workers).runner_pids())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: bank.entities.state(clock).ticks[-1] >= ends, timeout_s=ticks + 60)
    return list(bank.entities.state(clock).ticks)


@pytest.mark.chaos
def test_each_tick_fires_exactly_once_though_its_schedulers_are_killed(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", app_name="clockwork", entity_shards_per_group=4, entity_drain_budget_s=0.1)

    ticks = kill_schedulers(bank, kills=6, ticks=15, seed=random.randrange(10**6))

    assert gaps(ticks) == []


@pytest.mark.chaos_long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["amqp", "redis", "folder"])
def test_each_of_sixty_ticks_fires_exactly_once_over_twenty_kills(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, app_name="clockwork", entity_shards_per_group=4)

    ticks = kill_schedulers(bank, kills=20, ticks=60, seed=random.randrange(10**6))

    assert gaps(ticks) == []


def chimes(folder: Path) -> Counter[str]:
    """How often each task id has chimed."""
    lines = (folder / "chimes").read_text().splitlines() if (folder / "chimes").exists() else []
    return Counter(line.split()[0] for line in lines)


@pytest.mark.chaos
def test_two_beats_and_a_runner_together_fire_each_tick_once_and_one_may_die(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", app_name="clockwork", entity_shards_per_group=4)
    bank.worker(pool="threads", variables={"CLOCKWORK": "beat"})

    with beat(bank, 1, CLOCKWORK="beat") as first, beat(bank, 2, CLOCKWORK="beat"):
        eventually(lambda: len(chimes(bank.folder)) >= 3)
        first.kill()
        before = len(chimes(bank.folder))
        eventually(lambda: len(chimes(bank.folder)) >= before + 3)

    status = bank.entities.schedule_of("chime")
    eventually(lambda: len(chimes(bank.folder)) >= status.fired)
    # No worker was killed: each task was sent once, under the id of its tick.
    assert set(chimes(bank.folder).values()) == {1}
    assert all(bank.entities.reply(task_id).status == "done" for task_id in chimes(bank.folder))


def test_a_beat_alone_stores_ticks_which_a_worker_handles_later(new_bank: OpenBank) -> None:
    bank = new_bank("redis", app_name="clockwork", entity_shards_per_group=4)
    with beat(bank, 1, CLOCKWORK="beat"):
        eventually(lambda: bank.pending() >= 2)
    fired = bank.entities.schedule_of("chime").fired
    assert bank.pending() == fired

    bank.worker(pool="threads")

    eventually(lambda: len(chimes(bank.folder)) >= fired)


def test_a_worker_whose_schedules_make_no_sense_does_not_start(new_bank: OpenBank) -> None:
    bank = new_bank("folder", app_name="clockwork")

    worker = bank.start_worker(variables={"CLOCKWORK": "nonsense"})

    assert worker.exit_code() == 1
    assert "entitycelery: schedule 'never': cron expression '0 0 30 2 *'" in worker.log()
