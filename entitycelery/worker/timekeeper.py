"""The scheduler as a duty of one runner of the cluster: schedules fire without a beat, or beside many."""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection

from entitycelery.address import ShardId
from entitycelery.scheduler.ticker import Ticker
from entitycelery.settings import Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.transports.bell import Bell
from entitycelery.worker.duties import Duty, Hosting


class Timekeeper(Duty):
    """Fires ticks as they are due; looks for schedules that are new at every refresh interval."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings, bell: Bell) -> None:
        super().__init__(settings.refresh_interval_s)
        self._hosting = hosting
        self._elsewhere: queue.SimpleQueue[Collection[ShardId]] = queue.SimpleQueue()
        ringing = threading.Thread(
            target=_ring_all, args=(self._elsewhere, bell), name="entitycelery-ring", daemon=True
        )
        ringing.start()
        self._has_begun = False
        self._ticker = Ticker(
            store.timetable, settings.cluster, shards_per_group=lambda: store.shards_per_group, stored=self._ring
        )

    def tick(self) -> float:
        if not self._hosting.is_first:
            self._has_begun = False
            return self._every_s
        if not self._has_begun:
            self._ticker.compare()
            self._has_begun = True
        next_s = self._ticker.run()
        return self._every_s if next_s is None else min(self._every_s, next_s)

    def _ring(self, shards: Collection[ShardId]) -> None:
        # Our own worker is told without the broker.
        held = self._hosting.held
        self._hosting.wake([shard for shard in shards if shard in held])
        elsewhere = [shard for shard in shards if shard not in held]
        if elsewhere:
            self._elsewhere.put(elsewhere)


def _ring_all(elsewhere: queue.SimpleQueue[Collection[ShardId]], bell: Bell) -> None:
    # A thread of its own: a broker that hangs must not hold up what else is due.
    while True:
        shards = set(elsewhere.get())
        while not elsewhere.empty():
            shards.update(elsewhere.get())
        bell.mail_stored(shards)
