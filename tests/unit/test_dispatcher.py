"""The dispatcher hands wake-ups to as many slots as the pool has. The pool here only takes them down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.drain_task import Dispatcher, drain_strategy

SHARDS = [ShardId("default", number) for number in range(4)]
KNOWN = [*SHARDS, ShardId("default", 4)]


class Consumer:
    """A consumer of Celery's worker, as far as drains know it, with a pool of one slot."""

    def __init__(self) -> None:
        self.asked: list[DrainRequest] = []
        self.later: list[Callable[[], object]] = []
        self.dispatcher = Dispatcher(known=KNOWN, slots=lambda: 1, may_end_process=False)
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


def test_a_late_wakeup_for_a_shard_that_went_elsewhere_is_followed_once(consumer: Consumer) -> None:
    consumer.wake(KNOWN[-1])
    assert consumer.shards == [[KNOWN[-1]]]

    consumer.asked[0].on_done((True, []))

    assert consumer.shards == [[KNOWN[-1]], SHARDS]


def test_a_greenlet_that_was_ended_leaves_its_slot(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])
    consumer.wake(SHARDS[1])

    # Celery's gevent pool says so of it.
    consumer.asked[0].on_done((False, None, None))

    assert consumer.shards == [[SHARDS[0]], [SHARDS[1]]]


def test_later_wakeups_for_it_are_left_to_its_holder_until_it_was_hosted_again(consumer: Consumer) -> None:
    left = KNOWN[-1]
    for _ in range(3):
        consumer.wake(left)
        consumer.asked[-1].on_done((False, []))
    assert consumer.shards == [[left]]

    consumer.dispatcher.host(KNOWN)
    consumer.dispatcher.host(SHARDS)
    consumer.wake(left)

    assert consumer.shards == [[left], [left]]


def test_what_waits_for_a_slot_goes_with_the_shard(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])
    consumer.wake(SHARDS[1])
    consumer.wake(SHARDS[2])

    consumer.dispatcher.host([SHARDS[0], SHARDS[2]])
    consumer.asked[0].on_done((False, []))

    assert consumer.shards == [[SHARDS[0]], [SHARDS[2]]]


def test_a_wakeup_waits_from_when_it_came_until_a_slot_begins_with_it(consumer: Consumer) -> None:
    assert consumer.dispatcher.waits_s() == 0

    consumer.wake(SHARDS[0])
    assert consumer.dispatcher.waits_s() > 0
    assert consumer.dispatcher.busy() == set()

    consumer.asked[0].on_accepted(pid=0, time_accepted=1.0)
    assert consumer.dispatcher.waits_s() == 0
    assert consumer.dispatcher.busy() == {SHARDS[0]}

    consumer.wake(SHARDS[1])
    assert consumer.dispatcher.waits_s() > 0


def test_wakeups_of_a_busy_worker_wait_together_for_one_slot(consumer: Consumer) -> None:
    for shard in (SHARDS[0], SHARDS[1], SHARDS[2], SHARDS[1]):
        consumer.wake(shard)
    assert consumer.shards == [[SHARDS[0]]]

    consumer.asked[0].on_done((False, []))

    assert consumer.shards == [[SHARDS[0]], [SHARDS[1], SHARDS[2]]]


def test_a_drain_that_could_not_finish_goes_on_with_all_shards(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])

    consumer.asked[0].on_done((True, []))

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


def test_a_worker_whose_slots_all_hang_stays_starved_without_its_shards_until_one_is_free(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])
    consumer.asked[0].on_accepted(pid=0, time_accepted=1.0)
    consumer.wake(SHARDS[1])

    consumer.dispatcher.host([])
    assert consumer.dispatcher.waits_s() > 0
    consumer.dispatcher.host(SHARDS)
    assert consumer.dispatcher.waits_s() > 0
    consumer.asked[0].on_done((False, []))

    assert consumer.dispatcher.waits_s() == 0


def test_a_worker_with_a_free_slot_is_not_starved_by_shards_that_have_gone(consumer: Consumer) -> None:
    consumer.wake(SHARDS[0])
    consumer.wake(SHARDS[1])
    consumer.asked[0].on_done((False, []))
    consumer.asked[1].on_done((False, []))

    consumer.dispatcher.host([])

    assert consumer.dispatcher.waits_s() == 0


def test_a_worker_that_was_frozen_for_too_long_begins_no_drain(consumer: Consumer) -> None:
    consumer.dispatcher.hosted_until_s = 0.0

    consumer.wake(SHARDS[0])

    assert consumer.shards == []


def test_what_the_runner_process_has_said_is_done_before_a_wakeup_is(consumer: Consumer) -> None:
    consumer.dispatcher.look = lambda: consumer.dispatcher.wake(SHARDS[3])

    consumer.wake(SHARDS[0])

    assert consumer.shards == [[SHARDS[3]]]


def test_a_signal_never_finds_the_dispatcher_in_the_middle_of_what_its_handler_waits_for() -> None:
    """Its handler stops the pool, whose threads report the ends of their drains first."""
    dispatcher = Dispatcher(known=KNOWN, slots=lambda: 1, may_end_process=False)
    dispatcher.host(SHARDS)
    seen: list[bool] = []

    def stop_pool(*_: object) -> None:
        reported = threading.Thread(target=dispatcher.busy, daemon=True)
        reported.start()
        reported.join(5)
        seen.append(not reported.is_alive())

    before = signal.signal(signal.SIGQUIT, stop_pool)
    try:
        dispatcher.shield.install()
        # Asked for while the lock is held.
        dispatcher._slots = lambda: signal.raise_signal(signal.SIGQUIT) or 1
        dispatcher.wake(SHARDS[0])
    finally:
        signal.signal(signal.SIGQUIT, before)

    assert seen == [True] * len(seen)
    assert seen


class Job:
    """What a prefork pool knows of one call."""

    def __init__(self) -> None:
        self.is_known = True

    def discard(self) -> None:
        self.is_known = False


def prefork_pool(job: Job) -> Any:
    return SimpleNamespace(apply_async=lambda *_, **__: job, signal_safe=True)


def test_a_drain_that_a_process_may_have_begun_is_not_discarded_when_the_worker_ends(consumer: Consumer) -> None:
    dispatcher = Dispatcher(known=KNOWN, slots=lambda: 1, may_end_process=True)
    consumer.wake(SHARDS[0])
    job = Job()
    dispatcher.apply(prefork_pool(job), consumer.asked[0])

    # As Celery does with everything that no process has said to have begun.
    job.discard()

    assert job.is_known


def test_a_drain_that_went_with_the_connection_is_discarded(consumer: Consumer) -> None:
    dispatcher = Dispatcher(known=KNOWN, slots=lambda: 1, may_end_process=True)
    consumer.wake(SHARDS[0])
    job = Job()
    dispatcher.apply(prefork_pool(job), consumer.asked[0])

    consumer.connect()

    assert not job.is_known
