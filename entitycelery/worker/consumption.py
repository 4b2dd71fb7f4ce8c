"""What a worker consumes: exactly the shards that its runner process said last, and only for as long as it said.

Owns the shards' queues on the present broker connection. Everything that touches them happens on the worker's loop;
wake-ups from the runner process need no queue and no broker.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from entitycelery.address import ShardId, queue_name
from entitycelery.settings import Settings
from entitycelery.transports.broker import shard_queue
from entitycelery.worker.drain_task import Dispatcher
from entitycelery.worker.link import Consume, Status, Wake, WorkerEnd, now_s

log = logging.getLogger("entitycelery.worker")

_LEFT_OVER_WAKEUPS = 8


class Consumption:
    """Follows the runner process: consumes, stops to consume, wakes, and says how things stand."""

    def __init__(self, dispatcher: Dispatcher, settings: Settings) -> None:
        self._dispatcher = dispatcher
        dispatcher.look = self.look
        self._settings = settings
        # Where the worker's loop is no event loop, its timer is another thread.
        self._mutex = threading.RLock()
        self._link: WorkerEnd | None = None
        self._consumer: Any = None
        self._soon: Callable[[Callable[[], None]], object] = lambda call: call()
        self._wanted: list[ShardId] = []
        self._number = 0
        self._ends_s = 0.0
        self._consumed: set[ShardId] = set()
        self._done = 0
        self._said: Status | None = None
        self._leaving = self._tells_leaving = False
        self._drained = False
        self._releases = 0

    def follow(self, link: WorkerEnd) -> None:
        """Another runner process: it knows of nothing, and nothing is consumed until it says so."""
        with self._mutex:
            self._link = link
            self._number = self._done = 0
            self._wanted, self._ends_s = [], 0.0
            self._dispatcher.host([])
            self._say()
            self._apply_soon()

    def connect(self, consumer: Any, soon: Callable[[Callable[[], None]], object]) -> None:
        """The broker is connected: consume there; `soon` calls something on the loop that owns the connection."""
        with self._mutex:
            self._consumer = consumer
            self._soon = soon
            self._consumed.clear()
            self.look()
            self._apply()
            self._say()

    def disconnect(self) -> None:
        """The broker is gone, and Celery's loop stands still until it is back: others may have the shards meanwhile."""
        with self._mutex:
            self._consumer = None
            self._consumed.clear()
            if self._link is not None and not self._leaving:
                self._said = self._status()
                self._link.say(self._said)

    def leave(self, *, tell: bool = True) -> Status:
        """The worker ends: consume nothing more. What to tell the runner process, which keeps the leases until then."""
        with self._mutex:
            self._leaving = True
            self._tells_leaving = tell
            self._wanted = []
            self._dispatcher.host([])
            # Celery cancels its consumers itself on its way out.
            self._done = self._number
            return self._status()

    def release(self) -> None:
        """Have the runner process give everything up and begin anew."""
        with self._mutex:
            self._releases += 1
            self._say()

    def drain(self, drained: bool) -> None:
        """Host nothing until further notice, or take shards again."""
        with self._mutex:
            self._drained = drained
            self._say()

    def described(self) -> dict[str, Any]:
        """For operators."""
        with self._mutex:
            status = self._status()
            return {
                "shards": [str(shard) for shard in self._wanted],
                "busy": [str(shard) for shard in sorted(self._dispatcher.busy())],
                "starved": status.starved,
                "drained": status.drained,
                "refused": [str(shard) for shard in status.refused],
                "leaving": status.leaving,
            }

    def look(self) -> None:
        """Read what the runner process says and do it; give everything up when it has been silent for too long."""
        with self._mutex:
            self._look()

    def _look(self) -> None:
        link = self._link
        if link is None:
            return
        woken: set[ShardId] = set()
        has_answered = True
        for message in link.read():
            if isinstance(message, Wake):
                woken.update(message.shards)
            else:
                has_answered = False
                woken |= self._take(message)
        if self._wanted and (link.has_ended or now_s() >= self._ends_s):
            why = "has ended" if link.has_ended else "has said nothing in time"
            log.error("the runner process %s: no shard is consumed until it says so", why)
            self._wanted = []
            self._dispatcher.host([])
            self._apply_soon()
        if woken:
            self._dispatcher.wake(*sorted(shard for shard in woken if self._dispatcher.hosts(shard)))
        if not has_answered or self._status() != self._said:
            self._say()

    def _take(self, message: Consume) -> set[ShardId]:
        """Follow a list; the shards that are new in it."""
        self._number = message.number
        self._ends_s = self._dispatcher.hosted_until_s = message.until_s
        is_followed = not self._leaving and now_s() < self._ends_s
        before, self._wanted = set(self._wanted), message.shards if is_followed else []
        if before == set(self._wanted):
            self._done = max(self._done, self._number) if self._consumed == before else self._done
            return set()
        self._dispatcher.host(self._wanted)
        self._apply_soon()
        # Whoever hosted them before may have taken the last wake-up with him.
        return set(self._wanted) - before

    def _apply_soon(self) -> None:
        self._soon(self._apply)

    def _apply(self) -> None:
        """Make the queues be those of the wanted shards; on the loop."""
        with self._mutex:
            self._apply_now()

    def _apply_now(self) -> None:
        number, consumer = self._number, self._consumer
        if consumer is None or consumer.task_consumer is None:
            return
        wanted = set(self._wanted)
        for shard in sorted(self._consumed - wanted):
            consumer.task_consumer.cancel_by_queue(queue_name(self._settings.cluster, shard))
        for shard in sorted(wanted - self._consumed):
            self._add(consumer.task_consumer, shard)
        if wanted - self._consumed:
            consumer.task_consumer.consume()
        self._consumed = wanted
        if number > self._done:
            self._done = number
            self._say()

    def _add(self, task_consumer: Any, shard: ShardId) -> None:
        queue = shard_queue(self._settings.cluster, shard, self._settings.wakeup_expires_s)
        bound = task_consumer.add_queue(queue)
        # A night without a worker leaves stale wake-ups on brokers that do not expire them; they would all be drains.
        declared = bound.queue_declare(channel=task_consumer.channel)
        waiting = declared[1] if isinstance(declared, tuple) else 0
        if waiting > _LEFT_OVER_WAKEUPS:
            bound.purge()

    def _say(self) -> None:
        if self._link is not None and (self._consumer is not None or self._leaving):
            self._said = self._status()
            self._link.say(self._said)

    def _status(self) -> Status:
        return Status(
            done=self._done,
            # Only those that are on their way to somebody else: each change wakes the runner process.
            busy=sorted(shard for shard in self._dispatcher.busy() if not self._dispatcher.hosts(shard)),
            starved=self._consumer is None or self._dispatcher.waits_s() > self._settings.starved_after_s,
            leaving=self._tells_leaving,
            drained=self._drained,
            releases=self._releases,
            refused=sorted(self._dispatcher.refused()),
        )
