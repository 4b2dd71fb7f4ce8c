"""The drain as Celery sees it: a task with a strategy of its own, hidden from logs and events.

A wake-up is acknowledged when it arrives and goes to the pool as a plain function call, not as a traced task: so none
of the app's task settings (time limits, rate limits, annotations, serializers, acknowledgement) concerns it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from celery import Task

from entitycelery.address import ShardId
from entitycelery.transports.broker import DRAIN_TASK, rung_shard
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.drain_slot import run_drain
from entitycelery.worker.link import now_s
from entitycelery.worker.shield import Shield, ShieldedLock
from entitycelery.worker.submitter import Submitter

log = logging.getLogger("entitycelery.drain")

# Longer than any worker lives: a pool's default time limits apply only where none is given.
_NO_TIME_LIMIT_S = 10 * 365 * 86_400


class DrainTask(Task):  # type: ignore[type-arg] # not generic at run time
    """Registered so that the worker knows wake-ups; what they do is `run_drain`."""

    name = DRAIN_TASK
    Strategy = "entitycelery.worker.drain_task:drain_strategy"
    ignore_result = True
    acks_late = False
    rate_limit = None
    send_events = False

    @classmethod
    def annotate(cls) -> None:
        """The app's `task_annotations` are for its own tasks."""

    def run(self, group: str, numbers: Sequence[int]) -> bool:
        """Work off shards."""
        return run_drain(group, numbers, False, now_s())[0]


class Dispatcher:
    """Hands wake-ups to the pool: as many drains at a time as the pool has slots.

    Shards that are rung meanwhile wait here, and free slots share them: the busier the worker, the larger its
    batches, however many shards the mail is spread over. A drain that could not finish in its time goes on with all
    shards of its group that no other drain here works on: under such a load senders need not ring for any of them,
    since all are attended.
    """

    def __init__(
        self,
        *,
        known: Collection[ShardId],
        slots: Callable[[], int],
        may_end_process: bool,
        refuse_for_s: float = 3_600.0,
    ) -> None:
        self._known = frozenset(known)
        self._refuse_for_s = refuse_for_s
        self._refused: dict[ShardId, float] = {}
        # Shards that went elsewhere, and for which a late wake-up has been followed since.
        self._followed: set[ShardId] = set()
        self._slots = slots
        self._may_end_process = may_end_process
        self._hosted: dict[ShardId, None] = {}
        self.shield = Shield()
        self._mutex = ShieldedLock(self.shield)
        self._waiting: dict[ShardId, None] = {}
        self._waiting_since_s: float | None = None
        self._running: set[DrainRequest] = set()
        self._submitting = threading.local()
        self._submit: Callable[[DrainRequest], None] = lambda request: None
        self._later: Callable[[Callable[[], None]], object] = lambda call: None
        self._ends_in_slot = False
        self.submitter = Submitter()
        self.hosted_until_s = math.inf
        """When to stop, by the clock of the line to the runner process, unless it says something new."""
        self.look: Callable[[], None] = lambda: None
        """Does what the runner process has said meanwhile."""

    def connect(
        self,
        submit: Callable[[DrainRequest], None],
        later: Callable[[Callable[[], None]], object],
        *,
        ends_in_slot: bool,
    ) -> None:
        """Use this consumer's way into the pool; `later` calls something from its loop.

        When the broker's connection was lost, the worker has thrown away whatever no pool slot had begun, and nobody
        reports the end of that. Those drains are asked for anew.

        Args:
            ends_in_slot: Whether a drain's end is reported by whoever frees its slot of the pool, and before that.
        """
        self._submit = submit
        self._later = later
        self._ends_in_slot = ends_in_slot
        with self._mutex:
            thrown_away = {request for request in self._running if not request.accepted}
            self._running -= thrown_away
            for request in thrown_away:
                request.throw_away()
            self._wait(shard for request in thrown_away for shard in request.shards)
        if self._waiting:
            later(self.dispatch)

    def host(self, shards: Sequence[ShardId]) -> None:
        """Exactly these shards are worked on here."""
        with self._mutex:
            self._hosted = dict.fromkeys(shards)
            self._followed.difference_update(shards)
            self._waiting = {shard: None for shard in self._waiting if shard in self._hosted}
            # While no slot is free, what came would wait again: a starved worker stays so though its shards have gone.
            if self._waiting_since_s is not None and not self._waiting and len(self._running) < self._slots():
                self._waiting_since_s = None

    def busy(self) -> set[ShardId]:
        """Shards that drains are working on."""
        with self._mutex:
            return {shard for request in self._running if request.accepted for shard in request.shards}

    def waits_s(self) -> float:
        """How long the oldest wake-up has waited for a slot of the pool."""
        with self._mutex:
            since_s = [request.asked_s for request in self._running if not request.accepted]
            if self._waiting_since_s is not None:
                since_s.append(self._waiting_since_s)
        return time.monotonic() - min(since_s) if since_s else 0.0

    def refused(self) -> set[ShardId]:
        """Shards with mail that this worker's code does not know, and another's may."""
        with self._mutex:
            now_s = time.monotonic()
            self._refused = {shard: until_s for shard, until_s in self._refused.items() if until_s > now_s}
            return set(self._refused)

    def give_up(self, pool: Any, signal: int | None = None) -> bool:
        """End the drains that still run; their turns run again elsewhere. Whether all of them could be ended."""
        with self._mutex:
            running = list(self._running)
        ended = [request.give_up(pool, signal) for request in running]
        return all(ended)

    def knows(self, shard: ShardId) -> bool:
        """Whether this worker may ever work on the shard."""
        return shard in self._known

    def hosts(self, shard: ShardId) -> bool:
        """Whether this worker works on the shard now."""
        return shard in self._hosted

    def wake(self, *shards: ShardId) -> None:
        """Wake-ups arrived, or a drain left work behind."""
        with self._mutex:
            strays = {shard for shard in shards if shard not in self._hosted}
            # Its next holder may have looked before the mail was there; but once is enough, the sweep does the rest.
            self._wait(shard for shard in shards if shard not in strays or shard not in self._followed)
            self._followed |= strays
        self.dispatch()

    def _wait(self, shards: Iterable[ShardId]) -> None:
        self._waiting.update(dict.fromkeys(shards))
        if self._waiting and self._waiting_since_s is None:
            self._waiting_since_s = time.monotonic()

    def dispatch(self) -> None:
        """Give waiting shards to a free slot."""
        if getattr(self._submitting, "now", False):
            # A pool that runs drains inline would never come back to its broker.
            self._later(self.dispatch)
            return
        if self._hosted and now_s() >= self.hosted_until_s:
            # This process was frozen: others may have the shards.
            return
        with self._mutex:
            free = self._slots() - len(self._running)
            if not self._waiting or free <= 0:
                return
            group = next(iter(self._waiting)).group
            of_group = [shard for shard in self._waiting if shard.group == group]
            taken = of_group[: math.ceil(len(of_group) / free)]
            for shard in taken:
                del self._waiting[shard]
            # They have waited together: those that are left go with the next free slot.
            self._waiting_since_s = time.monotonic() if self._waiting else None
            request = DrainRequest(DrainTask, taken, apply=self.apply, ended=self.ended)
            self._running.add(request)
        self._submitting.now = True
        try:
            self._submit(request)
        finally:
            self._submitting.now = False
        if request in self._running:
            self.dispatch()

    def ended(self, request: DrainRequest, again: bool, unknown: Iterable[ShardId]) -> None:
        """A drain is over; some shards may have mail that this code does not know."""
        with self._mutex:
            self._running.discard(request)
            self._waiting_since_s = self._waiting_since_s if self._waiting else None
            self._refused.update(dict.fromkeys(unknown, time.monotonic() + self._refuse_for_s))
            self._wait(self._rest_of_group(request) if again else ())
        if self._ends_in_slot:
            # Submitting to a full pool from there would wait for a slot that only the one who waits can free.
            self._later(self.dispatch)
        else:
            self.dispatch()

    def _rest_of_group(self, request: DrainRequest) -> list[ShardId]:
        worked_on = {shard for running in self._running for shard in running.shards}
        group = request.shards[0].group
        return [shard for shard in self._hosted if shard.group == group and shard not in worked_on]

    def apply(self, pool: Any, request: DrainRequest) -> None:
        """Submit a drain to the pool."""
        limits: dict[str, Any] = {}
        if self._may_end_process:
            limits = {"timeout": _NO_TIME_LIMIT_S, "soft_timeout": _NO_TIME_LIMIT_S}
        numbers = [shard.number for shard in request.shards]
        with self.shield if _locks(pool) else nullcontext():
            job = pool.apply_async(
                run_drain,
                args=(request.shards[0].group, numbers, self._may_end_process, now_s()),
                accept_callback=request.on_accepted,
                callback=request.on_done,
                error_callback=request.on_lost,
                **limits,
            )
        # None where the pool is closed already.
        if self._may_end_process and job is not None:
            request.keep(job)


def _locks(pool: Any) -> bool:
    """Whether it is a pool of threads: whoever submits to it holds the lock that whoever stops it waits for."""
    return not pool.signal_safe and not pool.is_green


def drain_strategy(_task: object, _app: Any, consumer: Any) -> Callable[..., None]:
    """How the worker's consumer treats wake-ups."""
    dispatcher: Dispatcher = consumer.controller.entity_dispatcher

    def later(call: Callable[[], None]) -> object:
        return consumer.timer.call_after(0.001, call)

    # Without an event loop a prefork pool counts its slots, and its thread for results frees them.
    frees_by_thread = bool(getattr(getattr(consumer.pool, "_pool", None), "threads", False))
    dispatcher.connect(
        consumer.on_task_request,
        dispatcher.submitter.put if frees_by_thread else later,
        ends_in_slot=frees_by_thread or bool(getattr(consumer.pool, "is_green", False)),
    )

    def on_wakeup(message: Any, _body: Any, ack: Any, _reject: Any, callbacks: Any, **_: Any) -> None:
        ack(log, consumer.connection_errors)
        shard = rung_shard(message.headers)
        if shard is None or not dispatcher.knows(shard):
            log.warning("a foreign message on a shard's queue was dropped", extra={"headers": message.headers})
            return
        # The shard may have gone elsewhere while this message waited.
        dispatcher.look()
        dispatcher.wake(shard)
        # An autoscaler counts the worker's requests whenever something arrives, and only then at once.
        for callback in callbacks:
            callback(message)

    return on_wakeup
