"""The drain as Celery sees it: a task with a strategy of its own, hidden from logs and events.

A wake-up is acknowledged when it arrives and goes to the pool as a plain function call, not as a traced task: so none
of the app's task settings (time limits, rate limits, annotations, serializers, acknowledgement) concerns it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery import Task

from entitycelery.address import ShardId
from entitycelery.app import current_entities
from entitycelery.exceptions import EntityError, StoreUnavailable
from entitycelery.transports.broker import DRAIN_TASK, rung_shard

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

    def run(self, group: str, number: int) -> int:
        """Work off one shard."""
        return run_drain(group, number, False)


def run_drain(group: str, number: int, may_end_process: bool) -> int:
    """Work off the due messages of a shard in this process; the number of committed turns.

    Trouble with the store is logged and left to the sweep, which rings again.
    """
    shard = ShardId(group, number)
    try:
        return current_entities().host.drain(shard, may_end_process=may_end_process)
    except StoreUnavailable as exc:
        log.warning("drain stopped, the sweep will ring again: %s", exc, extra={"shard": str(shard)})
    except EntityError:
        log.exception("drain failed", extra={"shard": str(shard)})
    except Exception:
        log.exception("drain failed unexpectedly", extra={"shard": str(shard)})
    return 0


class Dispatcher:
    """Hands wake-ups to the pool: at most one drain per shard waits there, however many wake-ups come."""

    def __init__(self, *, may_end_process: bool) -> None:
        self._may_end_process = may_end_process
        self._mutex = threading.Lock()
        self._waiting: dict[ShardId, bool] = {}
        self._submit: Callable[[DrainRequest], None] = lambda request: None

    def connect(self, submit: Callable[[DrainRequest], None]) -> None:
        """Use this consumer's way into the pool."""
        self._submit = submit

    def wake(self, shard: ShardId) -> None:
        """A wake-up arrived."""
        with self._mutex:
            if shard in self._waiting:
                # The waiting drain may have begun without our knowing: have one more after it.
                self._waiting[shard] = True
                return
            self._waiting[shard] = False
        self._submit(DrainRequest(self, shard))

    def begun(self, shard: ShardId) -> None:
        """A pool slot took the drain."""
        with self._mutex:
            again = self._waiting.pop(shard, False)
        if again:
            self.wake(shard)

    def apply(self, pool: Any, request: DrainRequest) -> None:
        """Submit a drain to the pool."""
        limits: dict[str, Any] = {}
        if self._may_end_process:
            limits = {"timeout": _NO_TIME_LIMIT_S, "soft_timeout": _NO_TIME_LIMIT_S}
        pool.apply_async(
            run_drain,
            args=(request.shard.group, request.shard.number, self._may_end_process),
            accept_callback=request.on_accepted,
            callback=request.on_done,
            error_callback=request.on_lost,
            **limits,
        )


class DrainRequest:
    """One drain on its way through the worker; quacks like Celery's Request where the worker needs it."""

    __slots__ = ("_dispatcher", "shard")

    def __init__(self, dispatcher: Dispatcher, shard: ShardId) -> None:
        self._dispatcher = dispatcher
        self.shard = shard

    def execute_using_pool(self, pool: Any, **_: Any) -> None:
        self._dispatcher.apply(pool, self)

    def on_accepted(self, _pid: int, _time: float) -> None:
        self._dispatcher.begun(self.shard)

    def on_done(self, _turns: Any) -> None:
        """The drain is over; it has reported what went wrong itself."""

    def on_lost(self, info: Any) -> None:
        """The pool process ended under the drain; claims went with it, and the sweep rings again."""
        log.warning("a pool process ended during a drain of %s: %s", self.shard, getattr(info, "exception", info))
        self._dispatcher.begun(self.shard)


def drain_strategy(_task: object, _app: Any, consumer: Any) -> Callable[..., None]:
    """How the worker's consumer treats wake-ups."""
    dispatcher: Dispatcher = consumer.controller.entity_dispatcher
    dispatcher.connect(consumer.on_task_request)

    def on_wakeup(message: Any, _body: Any, ack: Any, _reject: Any, _callbacks: Any, **_: Any) -> None:
        ack(log, consumer.connection_errors)
        shard = rung_shard(message.headers)
        if shard is None:
            log.warning("a foreign message on a shard's queue was dropped", extra={"headers": dict(message.headers)})
            return
        dispatcher.wake(shard)

    return on_wakeup
