"""Workflows with real workers: each step's recorded effect exactly once, whatever is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.exceptions import TaskRevokedError

from entitycelery.exceptions import EntityError, StoreUnavailable
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.chaos.servers import own_postgres
from tests.services import fresh_postgres_database
from tests.waiting import eventually

WITHIN_S = 90.0
DONE = [f"do {number}" for number in range(5)]
UNDONE = [f"undo {number}" for number in reversed(range(5))]
STEPS = [str(number) for number in range(10)]


def results_of(name: str) -> list[str]:
    """What the saga gives whose steps have all been."""
    return [f"{name} {what}" for what in (*STEPS[:5], "leg", "packed", *STEPS[5:])]


def open_sagas(new_bank: OpenBank, broker: str, **conf: Any) -> Bank:
    # Workers die faster here than they start: whatever they were handling three times is not to blame.
    settings = {"entity_shards_per_group": 4, "entity_refresh_interval_s": 1.0, "entity_max_crashes": 50, **conf}
    return new_bank(broker, app_name="sagas", **settings)


def check(bank: Bank, name: str, *, fails: bool) -> None:
    """It ended as without any crash, and what it sent was sent once."""
    run = bank.saga.ref(name)
    if fails:
        with pytest.raises(ValueError, match="no"):
            run.result(timeout_s=WITHIN_S)
    else:
        assert run.result(timeout_s=WITHIN_S) == results_of(name)
    expected = [*DONE, "leg", *(UNDONE if fails else [])]
    eventually(lambda: len(bank.entities.state(bank.Ledger.ref(name)).entries) == len(expected), timeout_s=WITHIN_S)
    assert bank.entities.state(bank.Ledger.ref(name)).entries == expected
    assert run.status().status == ("failed" if fails else "completed")


@pytest.mark.parametrize("broker", ["amqp", "redis", "folder"])
def test_a_workflow_runs_to_its_end(new_bank: OpenBank, broker: str) -> None:
    bank = open_sagas(new_bank, broker)
    bank.worker()
    for name, fails in (("good", False), ("bad", True)):
        run = bank.saga.options(key=name).start(name, fails)
        eventually(lambda run=run: run.status().waits == ("go on",), timeout_s=WITHIN_S)
        assert run.signal("go on", True) == "completed"

        check(bank, name, fails=fails)


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["amqp", "folder"])
def test_workflows_end_as_they_should_though_their_workers_are_killed(new_bank: OpenBank, broker: str) -> None:
    bank = open_sagas(new_bank, broker)
    worker = bank.worker()
    names = {f"s{number}": number % 2 == 1 for number in range(12)}
    for name, fails in names.items():
        bank.saga.options(key=name).start(name, fails)
        bank.saga.ref(name).signal("go on", True)

    for rounds in range(1, 7):
        eventually(lambda rounds=rounds: _calls(bank, names) >= 15 * rounds, timeout_s=WITHIN_S)
        worker.kill_tree()
        worker = bank.worker()

    for name, fails in names.items():
        check(bank, name, fails=fails)
    eventually(lambda: bank.pending() == 0, timeout_s=WITHIN_S)
    assert bank.entities.dead_letters() == []


def _is_readable(bank: Bank) -> bool:
    try:
        return bank.entities.state(bank.Ledger.ref("any")).entries == []
    except StoreUnavailable:
        return False


def _calls(bank: Bank, names: dict[str, bool]) -> int:
    """How many calls are in all journals."""
    calls = 0
    for name in names:
        try:
            calls += len(bank.saga.ref(name).history())
        except EntityError:
            continue
    return calls


PLACES = [f"{when} {what}" for what in (*STEPS, "leg", "packed", "undo 0", "undo 4") for when in ("before", "after")]


def kill_at(bank: Bank, places: list[str], *, fails: bool) -> None:
    """A saga whose worker dies at each of these places, the next one goes on."""
    marks = [bank.folder / f"{place}.kill" for place in places]
    for mark in marks:
        mark.touch()
    run = bank.saga.options(key="s").start("s", fails)
    run.signal("go on", True)
    worker = bank.start_worker(pool="solo")
    while [mark for mark in marks if mark.exists()]:
        worker.exit_code(timeout_s=WITHIN_S)
        worker = bank.start_worker(pool="solo")

    check(bank, "s", fails=fails)
    eventually(lambda: bank.pending() == 0, timeout_s=WITHIN_S)
    assert bank.entities.dead_letters() == []


@pytest.mark.chaos
def test_a_worker_dies_at_some_boundaries_of_a_saga(new_bank: OpenBank) -> None:
    places = ["after 0", "before 4", "after leg", "after packed", "after undo 4"]
    kill_at(open_sagas(new_bank, "amqp"), places, fails=True)


@pytest.mark.chaos_long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("broker", ["amqp", "redis", "folder"])
def test_a_worker_dies_at_every_boundary_of_a_saga(new_bank: OpenBank, broker: str) -> None:
    kill_at(open_sagas(new_bank, broker), PLACES, fails=True)


def test_a_whole_cluster_stops_and_starts_in_the_middle(new_bank: OpenBank) -> None:
    bank = open_sagas(new_bank, "redis")
    workers = [bank.worker(), bank.worker()]
    run = bank.saga.options(key="s").start("s", False)
    eventually(lambda: run.status().waits == ("go on",), timeout_s=WITHIN_S)
    for worker in workers:
        worker.terminate()
    assert [worker.exit_code() for worker in workers] == [0, 0]

    # Nobody is there, and even the wake-up is lost.
    assert run.signal("go on", True) == "completed"
    with redis.Redis.from_url(bank.conf["broker_url"]) as broker:
        broker.flushdb()
    bank.worker()

    check(bank, "s", fails=False)


def test_the_broker_forgets_everything_while_a_workflow_waits(new_bank: OpenBank) -> None:
    bank = open_sagas(new_bank, "redis")
    bank.worker()
    waits = bank.saga.options(key="s").start("s", False)
    sleeps = bank.sleeps.options(key="s").start(3.0)
    eventually(lambda: waits.status().waits == ("go on",), timeout_s=WITHIN_S)

    with redis.Redis.from_url(bank.conf["broker_url"]) as broker:
        broker.flushdb()

    assert sleeps.result(timeout_s=WITHIN_S) > 0
    waits.signal("go on", True)
    check(bank, "s", fails=False)


@pytest.mark.chaos
def test_the_database_restarts_while_workflows_run(new_bank: OpenBank, tmp_path: Path) -> None:
    server, server_url = own_postgres()
    try:
        with fresh_postgres_database(server_url) as url:
            bank = open_sagas(new_bank, "amqp", entity_database_url=url)
            bank.worker()
            names = [f"s{number}" for number in range(6)]
            for name in names:
                bank.saga.options(key=name).start(name, name == "s0")
            eventually(lambda: _calls(bank, dict.fromkeys(names, False)) >= 20, timeout_s=WITHIN_S)

            server.halt(signal.SIGINT)
            server.launch()
            # Whoever only reads is told that its connection is gone.
            eventually(lambda: _is_readable(bank), timeout_s=WITHIN_S)

            for name in names:
                bank.saga.ref(name).signal("go on", True)
            for name in names:
                check(bank, name, fails=name == "s0")
            assert bank.entities.dead_letters() == []
            bank.close()
    finally:
        server.stop()


@pytest.mark.parametrize("broker", ["amqp", "redis", "folder"])
def test_celery_tasks_are_part_of_a_workflow(new_bank: OpenBank, broker: str) -> None:
    bank = open_sagas(new_bank, broker)
    own = f"{bank.app.conf.task_default_queue}.own"
    bank.worker()
    # The tasks of that queue run where no entity is hosted.
    bank.worker("-Q", own, "--without-entities")

    assert bank.sends.start().result(timeout_s=WITHIN_S) == ["packed", "0 packed", "1 packed", "2 packed"]
    with pytest.raises(ValueError, match="no parcel"):
        bank.sends.start(True).result(timeout_s=WITHIN_S)


def test_a_task_that_was_revoked_is_an_answer(new_bank: OpenBank) -> None:
    bank = open_sagas(new_bank, "redis")
    bank.worker()
    run = bank.sends.start(expires_s=0.1)
    eventually(lambda: len(run.history()) == 2, timeout_s=WITHIN_S)
    queue = f"{bank.app.conf.task_default_queue}.own"
    with redis.Redis.from_url(bank.conf["broker_url"]) as broker:
        eventually(lambda: broker.llen(queue) == 3, timeout_s=WITHIN_S)
    sent_s = time.time()
    eventually(lambda: time.time() > sent_s + 0.2)

    # Celery revokes what has expired when it takes it.
    bank.worker("-Q", queue, "--without-entities")

    with pytest.raises(TaskRevokedError):
        run.result(timeout_s=WITHIN_S)


@pytest.mark.parametrize(("broker", "number"), [("redis", 1_000), ("folder", 300)])
def test_a_fan_out_over_many_tasks(new_bank: OpenBank, broker: str, number: int) -> None:
    bank = open_sagas(new_bank, broker)
    # On the folder tasks and drains wait for the same two slots, which are counted there.
    bank.worker()
    began_s = time.monotonic()

    assert bank.fans_out.start(number).result(timeout_s=100) == number

    print(f"{number:,} tasks in {time.monotonic() - began_s:.1f} s")


@pytest.mark.chaos_long
@pytest.mark.timeout(300)
def test_ten_thousand_workflows_sleep_and_hold_no_slot(new_bank: OpenBank) -> None:
    bank = open_sagas(new_bank, "amqp")
    bank.worker()
    names = [f"s{number}" for number in range(10_000)]
    until_s = time.time() + 30
    for begin in range(0, len(names), 500):
        few = names[begin : begin + 500]
        bank.entities.send_many([bank.sleeps.ref(name).starting(until_s - time.time()) for name in few])
    eventually(lambda: bank.sleeps.ref(names[-1]).status().status == "suspended", timeout_s=WITHIN_S)
    assert time.time() < until_s

    assert bank.Ledger.ref("awake").write.ask("meanwhile") == 1

    woken_s = [bank.sleeps.ref(name).result(timeout_s=WITHIN_S) for name in names]
    print(f"woken within {max(woken_s) - until_s:.1f} s")
    assert min(woken_s) >= until_s - 1
    # 500 a second.
    assert max(woken_s) - until_s < len(names) / 500
