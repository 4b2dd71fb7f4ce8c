"""Options of `celery worker` that users combine: under each of them every message is handled once, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import celery
import pytest

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.ledgers import Load
from tests.celery.workers import Worker
from tests.waiting import eventually

SHARDS = 4
AT_ONCE = 3
SPAWNS = tuple(map(int, celery.__version__.split(".")[:2])) >= (5, 7)

# name -> the options
OPTIONS = {
    "max-tasks-per-child": ["--max-tasks-per-child", "1"],
    # 1 KiB: every process is replaced after every drain.
    "max-memory-per-child": ["--max-memory-per-child", "1"],
    "max-tasks-and-autoscale": ["--max-tasks-per-child", "2", "--autoscale", "3,1"],
    "purge": ["--purge", "--prefetch-multiplier", "1"],
    "spawn": ["--pool-start-method", "spawn"],
    "spawn-and-max-tasks": ["--pool-start-method", "spawn", "--max-tasks-per-child", "5"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_load_is_handled_once_and_in_order_under_an_option(new_bank: OpenBank, name: str) -> None:
    if "spawn" in name and not SPAWNS:
        pytest.skip(f"--pool-start-method came with Celery 5.7; this is {celery.__version__}")
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(*OPTIONS[name])

    with Load(bank, senders=2, messages=40, journals=4) as load:
        bank.leave_mark_task.delay("task-ran")

    load.assert_each_applied_once_in_order()
    assert eventually(lambda: bank.mark("task-ran"))
    assert "Traceback" not in worker.log(), worker.log_tail()


def test_worker_with_embedded_beat_hosts_entities_and_sends_what_is_scheduled(
    new_bank: OpenBank, tmp_path: Path
) -> None:
    schedule = {"mark": {"task": "bank.leave_mark", "schedule": 0.2, "args": ["beat-ran"]}}
    bank = new_bank("redis", entity_shards_per_group=SHARDS, beat_schedule=schedule)
    worker = bank.worker("-B", "-s", str(tmp_path / "schedule"))

    with Load(bank, senders=2, messages=40, journals=4) as load:
        pass

    load.assert_each_applied_once_in_order()
    assert eventually(lambda: bank.mark("beat-ran"))
    assert len(worker.runner_pids()) == 1
    assert worker.stop() == 0


def test_autoscaled_worker_grows_with_the_turns_that_wait(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker("--autoscale", f"{AT_ONCE},1")
    assert len(worker.pool_pids()) == 1

    held = hold(bank, AT_ONCE)

    eventually(lambda: [bank.mark(f"hold{number}.started") for number in range(AT_ONCE)])
    release(bank, AT_ONCE)
    assert len({message.result(timeout_s=30) for message in held}) == AT_ONCE


def test_grown_pool_runs_more_turns_at_once(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(slots=1)
    held = hold(bank, AT_ONCE)
    eventually(lambda: any_mark(bank))

    bank.app.control.pool_grow(AT_ONCE - 1, destination=[worker.node])

    eventually(lambda: [bank.mark(f"hold{number}.started") for number in range(AT_ONCE)])
    release(bank, AT_ONCE)
    assert len({message.result(timeout_s=30) for message in held}) == AT_ONCE


def test_shrunk_pool_ends_no_turn(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    worker = bank.worker(slots=AT_ONCE)

    with Load(bank, senders=2, messages=60, journals=4) as load:
        load.await_handled(20)
        bank.app.control.pool_shrink(1, destination=[worker.node])

    load.assert_each_applied_once_in_order()
    eventually(lambda: shrink(bank, worker), every_s=0.3)


def test_restarted_pool_goes_on_where_it_was(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS, worker_pool_restarts=True)
    worker = bank.worker()

    with Load(bank, senders=2, messages=60, journals=4) as load:
        load.await_handled(20)
        before = set(worker.pool_pids())
        bank.app.control.pool_restart(destination=[worker.node])
        eventually(lambda: not before & set(worker.pool_pids()))

    load.assert_each_applied_once_in_order()


def shrink(bank: Bank, worker: Worker) -> bool:
    """Ask for a pool of one process; Celery refuses while all are busy."""
    surplus = len(worker.pool_pids()) - 1
    if surplus:
        bank.app.control.pool_shrink(surplus, destination=[worker.node], reply=True)
    return len(worker.pool_pids()) == 1


def hold(bank: Bank, count: int) -> list[Any]:
    """Start turns of as many entities, each of which waits until it may go on."""
    return [bank.Journal.ref(f"held{number}").hold.send("me", number, f"hold{number}") for number in range(count)]


def release(bank: Bank, count: int) -> None:
    for number in range(count):
        bank.allow(f"hold{number}")


def any_mark(bank: Bank) -> bool:
    return any(bank.folder.glob("hold*.started"))
