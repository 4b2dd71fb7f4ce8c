"""Wake-ups as the broker gets them, and senders whose broker does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from entitycelery.address import ShardId, queue_name
from entitycelery.exceptions import TransportFailed
from entitycelery.transports import bell as bell_module
from entitycelery.transports.bell import Bell
from entitycelery.transports.broker import BrokerRinger, rung_shard, shard_queue

SHARD = ShardId("default", 3)
ENOUGH = 16


@pytest.fixture
def app() -> Celery:
    return Celery("wakeups", broker="memory://", set_as_current=False)


def waiting(app: Celery, cluster: str) -> list[Any]:
    """The wake-ups in the shard's queue."""
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(queue_name(cluster, SHARD), no_ack=True)
        return [queue.get_nowait() for _ in range(queue.qsize())]


def test_a_wakeup_is_transient_names_its_shard_and_expires(app: Celery, cluster_name: str) -> None:
    with app.connection_for_write() as connection:
        shard_queue(cluster_name, SHARD, 30.0)(connection.default_channel).declare()

    BrokerRinger(app, cluster_name, expires_s=30.0).ring([SHARD])

    [wakeup] = waiting(app, cluster_name)
    assert rung_shard(wakeup.headers) == SHARD
    assert not wakeup.body
    assert wakeup.properties["delivery_mode"] == 1
    assert wakeup.properties["expiration"] == "30000"


def test_the_queue_of_a_shard_drops_wakeups_by_age_and_number(cluster_name: str) -> None:
    queue = shard_queue(cluster_name, SHARD, 30.0)

    assert (queue.message_ttl, queue.max_length) == (30.0, ENOUGH)


def test_wakeups_that_nobody_consumes_are_bounded(app: Celery, cluster_name: str) -> None:
    ringer = BrokerRinger(app, cluster_name, expires_s=30.0)
    with app.connection_for_write() as connection:
        shard_queue(cluster_name, SHARD, 30.0)(connection.default_channel).declare()

    for _ in range(10 * ENOUGH):
        ringer.ring([SHARD])

    assert ENOUGH <= len(waiting(app, cluster_name)) <= 2 * ENOUGH


class Unreachable:
    """A broker that is away, and counts who asks for it."""

    def __init__(self) -> None:
        self.asked = 0

    def ring(self, shards: Sequence[ShardId]) -> None:
        self.asked += 1
        raise TransportFailed("away")


def test_a_sender_leaves_a_broker_alone_that_it_could_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: now[-1])
    monkeypatch.setattr(bell_module, "time", clock)
    broker = Unreachable()
    bell = Bell(broker, lambda shards: set())

    asked, now = [], []
    for now_s in (1_000.0, 1_000.5, 1_000.9, 1_001.1):
        now.append(now_s)
        bell.ring([SHARD])
        asked.append(broker.asked)

    assert asked == [1, 1, 1, 2]
