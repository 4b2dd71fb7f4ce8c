"""One drain on its way through the worker, as Celery's worker sees its requests.

It is listed among the worker's reserved and active requests: so autoscaling counts it, a soft shutdown waits for it, a
cold one ends it, and `inspect active` shows it.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

from celery.worker import state

from entitycelery.address import ShardId
from entitycelery.transports.broker import DRAIN_TASK

log = logging.getLogger("entitycelery.drain")

# The worker's option `signal` hides the module of that name.
_TERM = signal.SIGTERM


class DrainRequest:
    """A drain of some shards of one group; quacks like Celery's Request where the worker needs it."""

    name = DRAIN_TASK
    # Its wake-up was acknowledged on arrival.
    acknowledged = True

    def __init__(
        self,
        task: object,
        shards: Sequence[ShardId],
        *,
        apply: Callable[[Any, DrainRequest], None],
        ended: Callable[[DrainRequest, bool, Iterable[ShardId]], None],
    ) -> None:
        self.id = str(uuid4())
        self.task = task
        self.shards = shards
        self.asked_s = time.monotonic()
        """When it was submitted to the pool."""
        self.time_start: float | None = None
        self.worker_pid: int | None = None
        self._apply = apply
        self._ended = ended
        self._discard: Callable[[], object] = lambda: None
        state.reserved_requests.add(self)

    @property
    def accepted(self) -> bool:
        """Whether a slot of the pool has begun the drain: from then on its end is reported."""
        return self.time_start is not None

    def execute_using_pool(self, pool: Any, **_: Any) -> None:
        self._apply(pool, self)

    def keep(self, job: Any) -> None:
        """Have a prefork pool know the drain's job until it is over, or thrown away here.

        On its way out Celery's consumer discards each job that no process has said to have begun. One may have begun it
        all the same: nobody would read of its end, for which it waits half a minute before it exits.
        """
        self._discard = job.discard
        job.discard = lambda: None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A slot of the pool has begun the drain."""
        self.time_start = time_accepted
        self.worker_pid = pid
        state.active_requests.add(self)

    def on_done(self, drained: Sequence[Any]) -> None:
        """The drain is over; it has reported what went wrong itself."""
        self.forget()
        # What the pool says of a greenlet that was ended is as good: (False, None, None).
        more, unknown = drained[0], drained[1] or ()
        self._ended(self, more, [ShardId(self.shards[0].group, number) for number in unknown])

    def on_lost(self, info: Any) -> None:
        """The pool process ended under the drain; its claims went with it, so others can go on at once."""
        log.warning("a pool process ended during a drain: %s", getattr(info, "exception", info))
        self.forget()
        self._ended(self, True, ())

    def throw_away(self) -> None:
        """The worker has thrown it away before any slot began it."""
        self._discard()
        self.forget()

    def forget(self) -> None:
        """It is no longer the worker's."""
        self._discard = lambda: None
        state.reserved_requests.discard(self)
        state.active_requests.discard(self)

    def cancel(self, pool: Any, signal: int | None = None, **_: Any) -> None:
        """A cold shutdown: end the process or greenlet that drains. Its turns run again elsewhere."""
        if getattr(pool, "is_green", False) and pool.getpid() == self.worker_pid:
            # The signal came while this greenlet ran, which therefore runs the signal's handler, and ends in it. Before
            # Celery 5.7 nothing else would say that the worker is to end.
            state.should_terminate = True  # type: ignore[assignment] # None until then
        if not self.give_up(pool, signal):
            log.warning("this pool cannot end a turn that runs; the worker ends after it")

    def give_up(self, pool: Any, signal: int | None = None) -> bool:
        """End the process or greenlet that drains, where the pool can; its turns run again elsewhere."""
        log.warning("a drain is given up, its turns will run again", extra={"shards": str(self.shards)})
        if self.worker_pid is None:
            return True
        try:
            pool.terminate_job(self.worker_pid, signal or _TERM)
        except NotImplementedError:
            return False
        return True

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `inspect active` and `inspect reserved` show."""
        shards = [shard.number for shard in self.shards]
        return {
            "id": self.id,
            "name": self.name,
            "args": repr([self.shards[0].group, shards]) if safe else [self.shards[0].group, shards],
            "kwargs": "{}" if safe else {},
            "type": self.name,
            "hostname": None,
            "time_start": self.time_start,
            "acknowledged": self.acknowledged,
            "delivery_info": {},
            "worker_pid": self.worker_pid,
        }
