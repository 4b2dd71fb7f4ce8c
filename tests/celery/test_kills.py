"""Real signals in mid-load: every message takes effect once, in its sender's order, and service goes on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.celery.banks import BROKERS, Bank
from tests.celery.conftest import OpenBank
from tests.celery.ledgers import Load
from tests.celery.workers import Worker, is_alive
from tests.waiting import eventually

pytestmark = pytest.mark.chaos

GENEROUS_S = 20.0


def hold(bank: Bank, name: str = "held") -> tuple[object, int]:
    """A turn that is running now: its message, and the process that runs it."""
    sent = bank.Journal.ref(name).hold.send("me", 0, name)
    return sent, int(eventually(lambda: bank.mark(f"{name}.started")))


def test_turn_of_a_killed_pool_process_runs_again_and_keeps_its_place(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    bank.worker()
    held, pid = hold(bank)
    behind = [bank.Journal.ref("held").write.send("me", number) for number in range(1, 6)]

    bank.allow("held")
    os.kill(pid, signal.SIGKILL)

    assert behind[-1].result(timeout_s=GENEROUS_S)
    assert held.result(timeout_s=GENEROUS_S)
    assert bank.entities.state(bank.Journal.ref("held")).entries == [("me", number) for number in range(6)]


def test_load_survives_killed_pool_processes(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=4)
    worker = bank.worker()

    with Load(bank) as load:
        for count in (20, 100):
            load.await_handled(count)
            os.kill(worker.pool_pids()[0], signal.SIGKILL)

    load.assert_each_applied_once_in_order()
    assert worker.process.poll() is None


@pytest.mark.parametrize("broker", BROKERS)
def test_load_of_a_worker_killed_with_its_whole_tree_is_handled_by_the_other(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=8)
    one, other = bank.start_worker(), bank.start_worker()
    one.await_ready()
    other.await_ready()

    with Load(bank) as load:
        load.await_handled(50)
        one.kill_tree()

    load.assert_each_applied_once_in_order()
    assert other.process.poll() is None


def test_mail_claimed_by_a_killed_worker_is_handled_by_the_other_within_seconds(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    workers = [bank.start_worker(slots=1), bank.start_worker(slots=1)]
    for worker in workers:
        worker.await_ready()
    held, pid = hold(bank)
    victim = next(worker for worker in workers if pid in worker.pool_pids())
    bank.allow("held")

    victim.kill_tree()

    assert held.result(timeout_s=10) != pid
    assert bank.Journal.ref("held").of("me") == [0]


def test_killed_parent_takes_its_runner_with_it_and_loses_nothing(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=4)
    one, other = bank.start_worker(), bank.start_worker()
    one.await_ready()
    other.await_ready()
    [runner] = one.runner_pids()

    with Load(bank) as load:
        load.await_handled(30)
        os.kill(one.pid, signal.SIGKILL)
        eventually(lambda: not is_alive(runner))
        load.await_handled(90)
        # The pool processes that it left behind follow.
        one.kill_tree()

    load.assert_each_applied_once_in_order()


def test_orphaned_pool_process_that_still_commits_doubles_nothing(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    one = bank.worker()
    held, pid = hold(bank)
    bank.worker()

    os.kill(one.pid, signal.SIGKILL)
    bank.allow("held")

    assert held.result(timeout_s=GENEROUS_S)
    assert bank.Journal.ref("held").write.ask("me", 1)
    assert bank.entities.state(bank.Journal.ref("held")).entries == [("me", 0), ("me", 1)]


def test_killed_runner_process_is_replaced_and_the_new_one_does_its_duties(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    worker = bank.worker()
    [first] = worker.runner_pids()

    os.kill(first, signal.SIGKILL)

    [second] = eventually(lambda: [pid for pid in worker.runner_pids() if pid != first])
    assert second != first
    assert "starting another" in worker.log()
    # Nobody but a runner process rings for what becomes due.
    assert bank.Journal.ref("late").stamp.options(delay_s=0.2).send(1).result(timeout_s=GENEROUS_S)


@pytest.mark.parametrize(
    ("broker", "pool"),
    [("amqp", "prefork"), ("redis", "threads"), ("amqp", "solo"), ("redis", "gevent"), ("folder", "prefork")],
)
def test_worker_that_is_asked_to_end_under_load_loses_nothing(new_bank: OpenBank, broker: str, pool: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=8)
    worker = bank.worker(pool=pool)

    with Load(bank) as load:
        load.await_handled(50)
        worker.terminate()
        assert worker.exit_code() == 0
    successor = bank.worker(pool=pool)

    load.assert_each_applied_once_in_order()
    assert successor.process.poll() is None
    assert "Traceback" not in worker.log()


def test_nothing_survives_a_worker_that_was_asked_to_end(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    worker = bank.worker()
    tree = [*worker.runner_pids(), *worker.pool_pids()]

    worker.stop()

    assert len(tree) == 3
    assert not any(is_alive(pid) for pid in tree)


def test_messages_sent_while_no_worker_lives_are_handled_by_the_next(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=4)
    first: Worker = bank.worker()
    first.kill_tree()
    with Load(bank, messages=30) as load:
        pass

    bank.worker()

    load.assert_each_applied_once_in_order()
