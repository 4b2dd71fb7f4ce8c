"""Real workers: probed from outside, and judged by one another."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from entitycelery.health.heartbeat import read_heartbeat
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import Worker
from tests.cli.support import Ran, run_process, script
from tests.health.valve import valve_before
from tests.waiting import eventually

REFRESH_S = 0.2
SEND_TIMEOUT_S = 2.0
SHUT_FOR_S = 10.0
BEAT = "heartbeat.json"


def health(bank: Bank, *words: str) -> Ran:
    """`entitycelery health`, as a probe in the worker's container would run it."""
    command = [script("entitycelery"), "-A", "tests.celery.apps.bank", "health", *words]
    return run_process(command, bank.folder, **bank.environment())


def probed(new_bank: OpenBank, tmp_path: Path) -> tuple[Bank, Worker]:
    bank = new_bank(
        "redis",
        entity_shards_per_group=2,
        entity_refresh_interval_s=REFRESH_S,
        entity_health_file=str(tmp_path / BEAT),
    )
    return bank, bank.worker(slots=1)


def test_a_worker_that_runs_is_live_and_ready(new_bank: OpenBank, tmp_path: Path) -> None:
    bank, _ = probed(new_bank, tmp_path)

    def is_ready() -> bool:
        return health(bank, "ready").code == 0

    assert eventually(is_ready)
    assert health(bank, "live").code == 0


def test_a_runner_that_is_stuck_or_gone_shows(new_bank: OpenBank, tmp_path: Path) -> None:
    bank, worker = probed(new_bank, tmp_path)
    [runner] = worker.runner_pids()
    eventually(lambda: health(bank, "live", "--max-age", "2").code == 0)

    os.kill(runner, signal.SIGSTOP)
    eventually(lambda: health(bank, "live", "--max-age", "2").code == 1)
    os.kill(runner, signal.SIGCONT)
    eventually(lambda: health(bank, "live", "--max-age", "2").code == 0)

    worker.kill_tree()
    eventually(lambda: health(bank, "live", "--max-age", "2").code == 1)
    eventually(lambda: health(bank, "ready").code == 1)


def test_a_database_that_does_not_answer_is_no_reason_to_end_a_worker(
    new_bank: OpenBank, tmp_path: Path, postgres_url: str
) -> None:
    with valve_before(postgres_url) as valve:
        bank = new_bank(
            "redis",
            entity_database_url=valve.url,
            entity_shards_per_group=2,
            entity_refresh_interval_s=REFRESH_S,
            entity_send_timeout_s=SEND_TIMEOUT_S,
            entity_health_file=str(tmp_path / BEAT),
        )
        bank.worker(slots=1)
        eventually(lambda: health(bank, "ready").code == 0)

        valve.shut()
        shut_at_s = time.monotonic()
        not_ready = health(bank, "ready", "--timeout", "1")

        ages_s = []
        while time.monotonic() - shut_at_s < SHUT_FOR_S:
            beat = read_heartbeat(tmp_path / BEAT)
            assert beat is not None
            assert beat.is_fresh(time.time())
            ages_s.append(beat.age_s(time.time()))
            assert health(bank, "live").code == 0
        assert (not_ready.code, not_ready.complaint) == (69, "not ready: the store did not answer within 1 s")
        # The database did hold the loop up.
        assert max(ages_s) > 2 * REFRESH_S

        valve.open()
        eventually(lambda: health(bank, "ready").code == 0)


def test_the_heartbeat_names_the_registered_worker(new_bank: OpenBank, tmp_path: Path) -> None:
    bank, worker = probed(new_bank, tmp_path)
    [registered] = eventually(bank.entities.runners)

    live = eventually(lambda: health(bank, "live", "--output", "json").json)

    assert (live["worker"], live["pid"]) == (registered.worker, registered.pid)
    assert registered.pid == worker.pid


def pinging_pair(new_bank: OpenBank) -> tuple[Bank, Worker, Worker]:
    """Two workers with the same share, whose leases outlast the test: only pings find a dead one."""
    bank = new_bank(
        "redis",
        entity_shards_per_group=4,
        entity_refresh_interval_s=REFRESH_S,
        entity_lock_mode="rows",
        entity_lease_timeout_s=600.0,
        entity_health="ping",
    )
    one, other = bank.start_worker(slots=1), bank.start_worker(slots=1)
    one.await_ready(), other.await_ready()
    eventually(lambda: len(bank.entities.runners()) == 2)
    return bank, one, other


def test_a_worker_that_answers_no_ping_is_evicted_before_its_lease_has_run_out(new_bank: OpenBank) -> None:
    bank, survivor, victim = pinging_pair(new_bank)

    victim.kill_tree()

    def is_alone() -> bool:
        return [runner.address for runner in bank.entities.runners()] == [survivor.node]

    assert eventually(is_alone, timeout_s=20)
    eventually(lambda: "taken for dead by the health check" in survivor.log())


def test_a_frozen_runner_whose_worker_answers_pings_is_left_to_its_lease(new_bank: OpenBank) -> None:
    bank, survivor, other = pinging_pair(new_bank)
    [frozen] = other.runner_pids()

    os.kill(frozen, signal.SIGSTOP)
    try:

        def has_been_silent() -> bool:
            found = {runner.address: runner for runner in bank.entities.runners()}
            return found[other.node].unseen_s > 20 * REFRESH_S

        assert eventually(has_been_silent)
    finally:
        psutil.Process(frozen).resume()


def test_a_worker_whose_heartbeat_cannot_be_written_does_not_start(new_bank: OpenBank, tmp_path: Path) -> None:
    bank = new_bank("redis", entity_shards_per_group=2, entity_health_file=str(tmp_path / "nowhere" / BEAT))

    worker = bank.start_worker(slots=1)

    assert worker.exit_code() != 0
    assert "entitycelery: entity_health_file cannot be written" in worker.log()
