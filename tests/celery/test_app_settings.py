"""Drains are immune to the app's task settings, and hidden from its logs and events."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.celery.banks import Bank, open_bank
from tests.celery.conftest import OpenBank
from tests.services import Services
from tests.waiting import eventually


def hostile_settings() -> list[str]:
    """The names in apps/hostile.py, which can be imported in a worker only."""
    program = (Path(__file__).parent / "apps" / "hostile.py").read_text()
    assigned = [node for node in ast.parse(program).body if isinstance(node, ast.AnnAssign)]
    table = next(node.value for node in assigned if isinstance(node.value, ast.Dict))
    return [key.value for key in table.keys if isinstance(key, ast.Constant)]


LIMITS = ("--time-limit", "1", "--soft-time-limit", "1", "--max-tasks-per-child", "1")
# Longer than every time limit, which are 1 s.
LONG_S = 2.5


@pytest.fixture(scope="module", params=["amqp-prefork", "redis-threads"])
def bank(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    """A worker with every hostile setting at once, in its configuration and on its command line."""
    broker, pool = request.param.split("-")
    with open_bank(services, tmp_path_factory.mktemp("bank"), broker, entity_shards_per_group=4) as opened:
        opened.worker(*LIMITS, pool=pool, hostile="all")
        yield opened


def test_messages_are_handled_in_order_under_all_hostile_settings(bank: Bank) -> None:
    journal = bank.Journal.ref("ordered")

    sent = [journal.write.send("me", number) for number in range(40)]

    sent[-1].result(timeout_s=60)
    assert journal.of("me") == list(range(40))


def test_many_asks_are_answered_under_all_hostile_settings(bank: Bank) -> None:
    answers = [bank.Account.ref(f"account{number}").deposit.ask(number) for number in range(20)]

    assert answers == list(range(20))


def test_message_of_a_turn_is_handled_under_all_hostile_settings(bank: Bank) -> None:
    bank.Account.ref("from").deposit.ask(30)

    bank.Account.ref("from").transfer.ask(20, to="to")

    assert eventually(bank.Account.ref("to").statement) == 20


def test_time_limits_of_tasks_do_not_end_a_turn(bank: Bank) -> None:
    journal = bank.Journal.ref("slow")

    assert journal.write_at_leisure.ask("me", 1, LONG_S)

    assert bank.entities.state(journal).entries == [("me", 1)]
    assert "signal 9" not in bank.workers[0].log()


def test_hooks_of_the_apps_own_task_class_are_not_called(bank: Bank) -> None:
    bank.Account.ref("hooked").deposit.ask(1)

    log = bank.workers[0].log()

    assert "a hook of the app's own task class was called" not in log
    assert "Traceback" not in log


def test_delayed_message_comes_under_all_hostile_settings(bank: Bank) -> None:
    assert bank.Journal.ref("late").stamp.options(delay_s=0.3).send(1).result(timeout_s=30)


@pytest.mark.parametrize("setting", hostile_settings())
def test_each_hostile_setting_alone_harms_no_entity(new_bank: OpenBank, setting: str) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    bank.worker(hostile=setting)
    journal = bank.Journal.ref("journal")

    sent = [journal.write.send("me", number) for number in range(10)]
    sent.append(journal.write_at_leisure.send("me", 10, 1.5 if setting == "limits" else 0.01))

    assert sent[-1].result(timeout_s=60)
    assert bank.entities.state(journal).entries == [("me", number) for number in range(11)]
    assert [bank.Account.ref(f"account{number}").deposit.ask(1) for number in range(5)] == [1] * 5


@pytest.mark.filterwarnings("error")
def test_sender_with_hostile_settings_sends_and_asks_as_ever(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    worker = bank.worker()
    sender = bank.client(
        task_always_eager=True,
        task_serializer="pickle",
        accept_content=["pickle"],
        task_create_missing_queues=False,
        task_routes={"*": {"queue": "elsewhere"}},
        task_ignore_result=True,
        task_compression="gzip",
    )

    assert sender.Journal.ref("journal").write.ask("me", 1) in worker.pool_pids()
    assert sender.Account.ref("alice").deposit.delay(5).get(timeout=30) == 5
    sender.entities.close()


def test_drains_are_seen_neither_in_the_info_log_nor_in_events(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    worker = bank.worker("-E")
    seen: list[dict[str, Any]] = []
    over = threading.Event()

    def listen() -> None:
        with bank.app.connection_for_read() as connection:
            receiver = bank.app.events.Receiver(connection, handlers={"*": seen.append})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=True):
                if over.is_set():
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    # An ordinary task is the proof that events are heard and logs are written.
    eventually(lambda: bank.leave_mark_task.delay("heard") and task_names(seen, "task-succeeded"))
    for number in range(10):
        bank.Account.ref(f"account{number}").deposit.ask(number)
    before = len(task_ids(seen))
    last = bank.leave_mark_task.delay("over")
    eventually(lambda: last.id in task_ids(seen))
    over.set()

    assert before
    assert task_names(seen, "task-received") == {"bank.leave_mark"}
    assert {event["type"] for event in seen if event["type"].startswith("task-")} >= {"task-received", "task-succeeded"}
    ordinary = task_ids_of_log(worker.log())
    assert ordinary >= {last.id}
    assert task_ids(seen) <= ordinary
    assert "entitycelery.drain[" not in worker.log()


def task_names(seen: list[dict[str, Any]], kind: str) -> set[str]:
    received = {event["uuid"]: event["name"] for event in seen if event["type"] == "task-received"}
    return {received.get(event["uuid"], "?") for event in seen if event["type"] == kind}


def task_ids(seen: list[dict[str, Any]]) -> set[str]:
    return {event["uuid"] for event in seen if event["type"].startswith("task-")}


def task_ids_of_log(log: str) -> set[str]:
    received = [line.split("Task bank.leave_mark[")[1] for line in log.splitlines() if "Task bank.leave_mark[" in line]
    return {line.split("]")[0] for line in received}
