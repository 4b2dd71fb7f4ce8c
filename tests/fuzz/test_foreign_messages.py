"""Messages on our queues that we did not send: dropped with a word in the log, and the worker goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from entitycelery.address import ShardId, queue_name
from entitycelery.ref import address_of
from entitycelery.transports.broker import DRAIN_TASK
from tests.celery.banks import BROKERS, Bank, open_bank
from tests.services import Services
from tests.waiting import eventually

SHARD = 3
ABYSS = 10**30


@pytest.fixture(scope="module", params=BROKERS)
def bank(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    folder = tmp_path_factory.mktemp("bank")
    with open_bank(services, folder, request.param, entity_shards_per_group=4) as opened:
        opened.worker(pool="threads")
        yield opened


@pytest.fixture
def shards_queue(bank: Bank) -> Iterator[str]:
    """The name of the queue of one shard; afterwards entities of every shard are served, by the same worker."""
    name = queue_name(bank.conf["entity_cluster"], ShardId("default", SHARD))
    with bank.app.connection_for_read() as connection:
        # A worker that is ready has the lease, and with it the queue, a moment later; RabbitMQ drops what comes before.
        if connection.transport.driver_type == "amqp":
            eventually(lambda: connection.channel().queue_declare(name, passive=True))
    yield name
    [worker] = bank.workers
    assert worker.process.poll() is None, worker.log_tail()
    refs = [bank.Account.ref(f"alice-{n}") for n in range(12)]
    assert {bank.entities.envelope.shard(address_of(ref)).number for ref in refs} == set(range(4))
    assert all(ref.deposit.ask(1) >= 1 for ref in refs)


def publish(bank: Bank, queue: str, body: Any, **how: Any) -> None:
    """A raw message, as any program could send it."""
    with bank.app.connection_for_write() as connection, connection.Producer() as producer:
        producer.publish(body, exchange="", routing_key=queue, retry=False, **how)


DRAINS: dict[str, dict[str, Any]] = {
    "without a shard": {},
    "of a shard in words": {"entity_group": "default", "entity_shard": "three"},
    "of shard -1": {"entity_group": "default", "entity_shard": -1},
    "of shard 10^30": {"entity_group": "default", "entity_shard": str(ABYSS)},
    "of a shard that is none": {"entity_group": "default", "entity_shard": 1_000_000},
    "of shard true": {"entity_group": "default", "entity_shard": True},
    "of nobody's group": {"entity_group": "'; DROP TABLE message; --", "entity_shard": 0},
    "of a group of none": {"entity_group": None, "entity_shard": 0},
    "of a list": {"entity_group": ["default"], "entity_shard": [3]},
}


@pytest.mark.parametrize("name", DRAINS)
def test_a_wake_up_that_makes_no_sense_is_dropped(name: str, bank: Bank, shards_queue: str) -> None:
    [worker] = bank.workers
    before = worker.log().count("a foreign message on a shard's queue was dropped")

    publish(bank, shards_queue, "", headers={"task": DRAIN_TASK, **DRAINS[name]}, content_type="text/plain")

    eventually(lambda: worker.log().count("a foreign message on a shard's queue was dropped") > before)


BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "nothing": ("", {"content_type": "application/json", "content_encoding": "utf-8"}),
    "garbage": ("garbage", {"content_type": "application/json", "content_encoding": "utf-8"}),
    "bytes that are no UTF-8": (b"\xff\xfe\x00", {"content_type": "application/json", "content_encoding": "utf-8"}),
    "a pickle": (b"\x80\x04N.", {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
    "of no known type": ("x", {"content_type": "application/x-nobody-knows", "content_encoding": "utf-8"}),
    "of no known encoding": (b"x", {"content_type": "text/plain", "content_encoding": "klingon"}),
    "a number": ("5", {"content_type": "application/json", "content_encoding": "utf-8"}),
    "a list": ("[[], {}, {}]", {"content_type": "application/json", "content_encoding": "utf-8"}),
    "an old drain": (
        json.dumps({"task": DRAIN_TASK, "id": "1", "args": ["default", [3]], "kwargs": {}}),
        {"content_type": "application/json", "content_encoding": "utf-8"},
    ),
    "an unknown task": (
        "[[], {}, {}]",
        {"headers": {"task": "nobody.knows", "id": "1"}, "content_type": "application/json"},
    ),
    "a task of garbage": (
        "garbage",
        {"headers": {"task": "bank.leave_mark", "id": "2"}, "content_type": "application/json"},
    ),
    "5,000 levels": ("[" * 5_000 + "]" * 5_000, {"content_type": "application/json", "content_encoding": "utf-8"}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_message_that_is_no_wake_up_does_no_harm(name: str, bank: Bank, shards_queue: str) -> None:
    body, how = BODIES[name]

    publish(bank, shards_queue, body, **how)


def test_a_task_on_a_shards_queue_runs_as_a_task(bank: Bank, shards_queue: str) -> None:
    bank.leave_mark_task.apply_async(["astray"], queue=None, exchange="", routing_key=shards_queue)

    assert eventually(lambda: bank.mark("astray"))


def test_a_drain_sent_as_a_task_is_dropped(bank: Bank, shards_queue: str) -> None:
    [worker] = bank.workers
    before = worker.log().count("a foreign message on a shard's queue was dropped")

    for args in ([], ["default"], [None, None], ["default", [ABYSS]], ["default", [3]]):
        bank.app.send_task(DRAIN_TASK, args, exchange="", routing_key=shards_queue, serializer="json")

    eventually(lambda: worker.log().count("a foreign message on a shard's queue was dropped") >= before + 5)
