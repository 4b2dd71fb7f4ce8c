"""The drain as Celery sees it: a task with a strategy of its own, hidden from logs and events.

A wake-up is acknowledged when it arrives and goes to the pool as a plain function call, not as a traced task: so none
of the app's task settings (time limits, rate limits, annotations, serializers, acknowledgement) concerns it.
"""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from celery import Task

from entitycelery.address import ShardId
from entitycelery.app import current_entities
from entitycelery.exceptions import StoreUnavailable
from entitycelery.settings import Settings
from entitycelery.transports.broker import DRAIN_TASK, rung_shard
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.logs import set_up_worker_log
from entitycelery.worker.termination import process_may_be_ended

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
        return run_drain(group, numbers, False)


def run_drain(group: str, numbers: Sequence[int], may_end_process: bool) -> bool:
    """Work off the due messages of shards in this process; whether they must be drained again.

    Trouble with the store is logged and left to the sweep, which rings again.
    """
    shards = [ShardId(group, number) for number in numbers]
    try:
        entities = current_entities()
        _prepare_process(os.getpid(), entities.settings, is_pools_own=may_end_process)
        with process_may_be_ended():
            return entities.host.drain(*shards, may_end_process=may_end_process).more
    except StoreUnavailable as exc:
        log.warning("drain stopped, the sweep will ring again: %s", exc)
    except Exception:
        log.exception("drain failed", extra={"group": group, "shards": numbers})
    return False


@functools.lru_cache(maxsize=1)
def _prepare_process(_pid: int, settings: Settings, *, is_pools_own: bool) -> None:
    # Processes that the pool spawns have handlers of their own; forked ones inherit them as they are.
    set_up_worker_log(settings)
    if is_pools_own:
        # What the app imported stays; the collector need not look through it again every few batches.
        gc.freeze()


class Dispatcher:
    """Hands wake-ups to the pool: as many drains at a time as the pool has slots.

    Shards that are rung meanwhile wait here, and free slots share them: the busier the worker, the larger its
    batches, however many shards the mail is spread over. A drain that could not finish in its time goes on with all
    shards of its group that no other drain here works on: under such a load senders need not ring for any of them,
    since all are attended.
    """

    def __init__(self, *, slots: Callable[[], int], may_end_process: bool) -> None:
        self._slots = slots
        self._may_end_process = may_end_process
        self._hosted: dict[ShardId, None] = {}
        self._mutex = threading.Lock()
        self._waiting: dict[ShardId, None] = {}
        self._running: set[DrainRequest] = set()
        self._submitting = threading.local()
        self._submit: Callable[[DrainRequest], None] = lambda request: None
        self._later: Callable[[Callable[[], None]], object] = lambda call: None
        self._ends_in_slot = False

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
            ends_in_slot: Whether a drain still occupies its slot of the pool when it reports its end.
        """
        self._submit = submit
        self._later = later
        self._ends_in_slot = ends_in_slot
        with self._mutex:
            thrown_away = {request for request in self._running if not request.accepted}
            self._running -= thrown_away
            for request in thrown_away:
                request.forget()
            self._waiting.update(dict.fromkeys(shard for request in thrown_away for shard in request.shards))
        if self._waiting:
            later(self.dispatch)

    def host(self, shards: Sequence[ShardId]) -> None:
        """These shards' queues are consumed here."""
        self._hosted = dict.fromkeys(shards)

    def hosts(self, shard: ShardId) -> bool:
        """Whether this worker works on the shard."""
        return shard in self._hosted

    def wake(self, *shards: ShardId) -> None:
        """Wake-ups arrived, or a drain left work behind."""
        with self._mutex:
            self._waiting.update(dict.fromkeys(shards))
        self.dispatch()

    def dispatch(self) -> None:
        """Give waiting shards to a free slot."""
        if getattr(self._submitting, "now", False):
            # A pool that runs drains inline would never come back to its broker.
            self._later(self.dispatch)
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
            request = DrainRequest(DrainTask, taken, apply=self.apply, ended=self.ended)
            self._running.add(request)
        self._submitting.now = True
        try:
            self._submit(request)
        finally:
            self._submitting.now = False
        if request in self._running:
            self.dispatch()

    def ended(self, request: DrainRequest, again: bool) -> None:
        """A drain is over."""
        with self._mutex:
            self._running.discard(request)
            self._waiting.update(dict.fromkeys(self._rest_of_group(request) if again else ()))
        if self._ends_in_slot:
            # Submitting from a full pool's own slots would wait for a slot that only the submitter can free.
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
        pool.apply_async(
            run_drain,
            args=(request.shards[0].group, numbers, self._may_end_process),
            accept_callback=request.on_accepted,
            callback=request.on_done,
            error_callback=request.on_lost,
            **limits,
        )


def drain_strategy(_task: object, _app: Any, consumer: Any) -> Callable[..., None]:
    """How the worker's consumer treats wake-ups."""
    dispatcher: Dispatcher = consumer.controller.entity_dispatcher
    dispatcher.connect(
        consumer.on_task_request,
        lambda call: consumer.timer.call_after(0.001, call),
        ends_in_slot=bool(getattr(consumer.pool, "is_green", False)),
    )

    def on_wakeup(message: Any, _body: Any, ack: Any, _reject: Any, callbacks: Any, **_: Any) -> None:
        ack(log, consumer.connection_errors)
        shard = rung_shard(message.headers)
        if shard is None or not dispatcher.hosts(shard):
            log.warning("a foreign message on a shard's queue was dropped", extra={"headers": message.headers})
            return
        dispatcher.wake(shard)
        # An autoscaler counts the worker's requests whenever something arrives, and only then at once.
        for callback in callbacks:
            callback(message)

    return on_wakeup
