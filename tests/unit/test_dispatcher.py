"""The dispatcher hands wake-ups to as many slots as the pool has. The pool here only takes them down."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.drain_task import Dispatcher, drain_strategy

SHARDS = [ShardId("default", number) for number in range(4)]


class Consumer:
    """A consumer of Celery's worker, as far as drains know it, with a pool of one slot."""

    def __init__(self) -> None:
        self.asked: list[DrainRequest] = []
        self.later: list[Callable[[], object]] = []
        self.dispatcher = Dispatcher(slots=lambda: 1, may_end_process=False)
        self.dispatcher.host(SHARDS)
        self.connect()

    def connect(self) -> None:
        """As at the start, and whenever the broker's connection was lost."""
        self.on_wakeup = drain_strategy(
            None,
            None,
            SimpleNamespace(
                controller=SimpleNamespace(entity_dispatcher=self.dispatcher),
                on_task_request=self.asked.append,
                timer=SimpleNamespace(call_after=lambda _s, call: self.later.append(call)),
                pool=SimpleNamespace(is_green=False),
                connection_errors=(),
            ),
        )
        for call in self.later:
            call()
        self.later.clear()

    def wake(self, shard: ShardId) -> None:
        headers = {"entity_group": shard.group, "entity_shard": shard.number}
        self.on_wakeup(SimpleNamespace(headers=headers), None, lambda *_: None, lambda *_: None, ())

    @property
    def shards(self) -> list[list[ShardId]]:
        """What each drain was asked to work on."""
        return [list(request.shards) for request in self.asked]


@pytest.fixture
def consumer() -> Any:
    made = Consumer()
    yield made
    for request in made.asked:
        request.forget()


def test_a_wakeup_for_a_shard_that_is_not_hosted_takes_no_slot(consumer: Consumer) -> None:
    consumer.wake(ShardId("default", 99))
    consumer.wake(ShardId("other", 0))

    assert consumer.shards == []


def test_wakeups_of_a_busy_worker_wait_together_for_one_slot(consumer: Consumer) -> None:
    for shard in (SHARDS[0], SHARDS[1], SHARDS[2], SHARDS[1]):
        consumer.wake(shard)
    assert consumer.shards == [[SHARDS[0]]]

    consumer.asked[0].on_done(False)

    assert consumer.shards == [[SHARDS[0]], [SHARDS[1], SHARDS[2]]]


def test_a_drain_that_could_not_finish_goes_on_with_all_shards(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])

    consumer.asked[0].on_done(True)

    assert consumer.shards == [[SHARDS[0]], SHARDS]


def test_drains_that_went_with_the_connection_are_asked_for_anew(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])

    consumer.connect()

    assert consumer.shards == [[SHARDS[0]], [SHARDS[0]]]


def test_drains_that_run_outlive_the_connection(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])
    consumer.asked[0].on_accepted(pid=0, time_accepted=1.0)

    consumer.connect()

    assert consumer.shards == [[SHARDS[0]]]
