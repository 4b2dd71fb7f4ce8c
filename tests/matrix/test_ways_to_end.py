"""Every way to end a worker: a turn that runs is finished or given up for good, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.ledgers import Load
from tests.celery.workers import Worker
from tests.waiting import eventually

SHARDS = 4
SOFT_S = 4.0
# A turn that nobody lets go on is given up by then; its own limit is 300 s.
ENDS_WITHIN_S = 20.0

End = Callable[[Bank, Worker], None]


def start_held_turn(bank: Bank) -> None:
    """A turn that waits until it is allowed to go on."""
    bank.Journal.ref("held").hold.send("me", 1, "hold")
    eventually(lambda: bank.mark("hold.started"))


def assert_held_turn_ran_once(bank: Bank) -> None:
    eventually(lambda: bank.pending() == 0)
    assert bank.entities.state(bank.Journal.ref("held")).entries == [("me", 1)]
    # What was given up is not a failure either.
    assert "turn failed" not in "".join(worker.log() for worker in bank.workers)


def end_by_remote_control(bank: Bank, worker: Worker) -> None:
    bank.app.control.shutdown(destination=[worker.node])


def end_warmly(_bank: Bank, worker: Worker) -> None:
    worker.process.send_signal(signal.SIGTERM)


def end_by_interrupt(_bank: Bank, worker: Worker) -> None:
    worker.process.send_signal(signal.SIGINT)


def end_coldly(_bank: Bank, worker: Worker) -> None:
    worker.process.send_signal(signal.SIGQUIT)


@pytest.mark.parametrize("end", [end_by_remote_control, end_warmly, end_by_interrupt, end_coldly])
def test_load_of_a_worker_that_is_told_to_end_is_handled_once_by_the_next(new_bank: OpenBank, end: End) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker()

    with Load(bank, senders=2, messages=60, journals=4) as load:
        load.await_handled(20)
        end(bank, worker)
        worker.exit_code()
        bank.worker()

    load.assert_each_applied_once_in_order()


@pytest.mark.parametrize("end", [end_by_remote_control, end_warmly])
def test_warm_shutdown_finishes_the_turn_that_runs(new_bank: OpenBank, end: End) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker()
    start_held_turn(bank)

    end(bank, worker)
    eventually(lambda: not worker.runner_pids())
    bank.allow("hold")

    assert worker.exit_code() == 0
    assert bank.entities.state(bank.Journal.ref("held")).entries == [("me", 1)]
    assert bank.pending() == 0


def test_pool_process_that_is_told_to_end_leaves_its_turn_to_another(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    bank.worker()
    held = bank.Journal.ref("held").hold.send("me", 1, "hold")
    runs_in = int(eventually(lambda: bank.mark("hold.started")))

    # As systemd does with every process of a unit.
    os.kill(runs_in, signal.SIGTERM)
    bank.allow("hold")

    assert held.result(timeout_s=30) != runs_in
    assert bank.entities.state(bank.Journal.ref("held")).entries == [("me", 1)]


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_cold_shutdown_gives_a_turn_up_and_the_next_worker_runs_it_once(new_bank: OpenBank, pool: str) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(pool=pool)
    start_held_turn(bank)

    end_coldly(bank, worker)
    worker.exit_code(ENDS_WITHIN_S)
    bank.allow("hold")
    bank.worker()

    assert_held_turn_ran_once(bank)


def test_cold_shutdown_whose_signal_comes_in_the_middle_of_a_turn_of_gevents_gives_that_up(new_bank: OpenBank) -> None:
    """Python runs a signal's handler in whichever greenlet runs just then: the one that the handler is to end."""
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(pool="gevent")
    bank.Journal.ref("held").end_coldly_and_hold.send("me", 1, "hold")

    worker.exit_code(ENDS_WITHIN_S)
    bank.allow("hold")
    bank.worker()

    assert_held_turn_ran_once(bank)


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_cold_shutdown_waits_for_turns_that_cannot_be_ended(new_bank: OpenBank, pool: str) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(pool=pool)
    start_held_turn(bank)

    end_coldly(bank, worker)
    eventually(lambda: "cannot end a turn" in worker.log())
    bank.allow("hold")

    worker.exit_code(ENDS_WITHIN_S)
    assert_held_turn_ran_once(bank)


def test_cold_shutdown_whose_signal_comes_while_a_drain_is_given_to_a_thread_waits_for_it(
    new_bank: OpenBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery stops the pool in the signal's handler: there it would wait for a lock that the worker itself holds."""
    monkeypatch.setenv("CELERY_CUSTOM_WORKER_POOL", "tests.celery.apps.pools:EndedWhileSubmitting")
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(pool="custom")
    start_held_turn(bank)

    eventually(lambda: "cannot end a turn" in worker.log())
    bank.allow("hold")

    worker.exit_code(ENDS_WITHIN_S)
    assert_held_turn_ran_once(bank)


@pytest.mark.parametrize("remapped", [False, True], ids=["SIGQUIT", "REMAP_SIGTERM"])
def test_soft_shutdown_lets_a_turn_finish_in_its_time(
    new_bank: OpenBank, remapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if remapped:
        monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    bank = new_bank("redis", entity_shards_per_group=SHARDS, worker_soft_shutdown_timeout=SOFT_S)
    worker = bank.worker()
    start_held_turn(bank)

    worker.process.send_signal(signal.SIGTERM if remapped else signal.SIGQUIT)
    eventually(lambda: "Initiating Soft Shutdown" in worker.log(), timeout_s=10)
    bank.allow("hold")

    worker.exit_code(ENDS_WITHIN_S)
    assert bank.entities.state(bank.Journal.ref("held")).entries == [("me", 1)]
    assert bank.pending() == 0


def test_soft_shutdown_gives_up_a_turn_that_takes_longer(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS, worker_soft_shutdown_timeout=SOFT_S)
    worker = bank.worker()
    start_held_turn(bank)

    end_coldly(bank, worker)
    worker.exit_code(SOFT_S + ENDS_WITHIN_S)
    bank.allow("hold")
    bank.worker()

    assert_held_turn_ran_once(bank)
