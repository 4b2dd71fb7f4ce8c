"""Delayed mail and retries: a runner sleeps until the next of its shards is due, and rings for it then.

    listen -> look: what has become due, what will be next -> ring -> sleep until that moment ... look

What is due is for the database's clock to say, so a ring is never early. Only how long to sleep is measured here, by a
clock that nobody steps, from before the question on. A look sees two refresh intervals ahead and is repeated after one;
whoever stores mail that is due sooner than that tells. A hint that is lost costs one refresh interval.
"""

from __future__ import annotations

import time

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.settings import Settings
from entitycelery.storage.port import EVER_EPOCH_S, DueMoments, Ear
from entitycelery.storage.sql.store import SqlStore
from entitycelery.worker.duties import Duty, Hosting

# A look that comes a hair too early finds nothing and costs another one.
_ROUNDED_UP_S = 0.001
# However many moments follow each other, the database is asked 200 times a second at most.
_SHORTEST_PAUSE_S = 0.005


class DueMail(Duty):
    """Rings for delayed messages and retries when they are due."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings) -> None:
        super().__init__(settings.refresh_interval_s)
        self._store = store
        self._hosting = hosting
        self._poll_s = settings.due_interval_s
        self._is_told = False
        self._looked_at: frozenset[ShardId] = frozenset()
        self._looked_s = 0.0
        self._complete_at_s = 0.0
        self._now_epoch_s = self._since_epoch_s = EVER_EPOCH_S
        self._rang_at_s: dict[ShardId, float] = {}

    def follow(self, *, is_told: bool) -> None:
        """Whether `hear` will be called from now on; if not, look often. What was told before is not known."""
        self._is_told = is_told
        self._complete_at_s = self.next_at_s = 0.0

    def hear(self, due_epoch_s: float) -> None:
        """Mail was stored that is due then, perhaps in a shard of ours: look then, if not before."""
        self._since_epoch_s = min(self._since_epoch_s, due_epoch_s)
        in_s = max(_SHORTEST_PAUSE_S, due_epoch_s - self._now_epoch_s + _ROUNDED_UP_S)
        self.next_at_s = min(self.next_at_s, self._looked_s + in_s)

    def _interrupts(self) -> list[int]:
        return [self._hosting.moved]

    def tick(self) -> float:
        self._hosting.settle_moved()
        held = self._hosting.held
        if not held:
            self._looked_at = held
            return self._every_s
        began_s = time.monotonic()
        is_complete = not self._is_told or began_s >= self._complete_at_s
        known = self._looked_at & held
        since = {shard: self._since_epoch_s if shard in known else EVER_EPOCH_S for shard in held}
        moments = self._store.due_moments(dict.fromkeys(since, EVER_EPOCH_S) if is_complete else since)
        self._ring(moments, since, began_s)
        self._looked_at, self._looked_s, self._now_epoch_s = held, began_s, moments.now_epoch_s
        # Nobody tells of a commit that took longer than its mail's delay: look back as far as between two looks.
        self._since_epoch_s = moments.now_epoch_s - (0.0 if self._is_told else self._poll_s)
        if is_complete:
            self._complete_at_s = began_s + self._every_s
        return began_s + self._rest_s(moments, began_s) - time.monotonic()

    def _ring(self, moments: DueMoments, since: dict[ShardId, float], now_s: float) -> None:
        """For what has become due since the last look; for what became so before, in case a ring was lost."""
        rung = [
            shard
            for shard, due_epoch_s in moments.due.items()
            if due_epoch_s >= since[shard] or now_s - self._rang_at_s.get(shard, -self._every_s) >= self._every_s
        ]
        self._rang_at_s.update(dict.fromkeys(rung, now_s))
        self._hosting.wake(rung)

    def _rest_s(self, moments: DueMoments, began_s: float) -> float:
        """How long to sleep, counted from before the look."""
        longest_s = self._complete_at_s - began_s if self._is_told else self._poll_s
        if moments.next_epoch_s is None:
            return longest_s
        in_s = moments.next_epoch_s - moments.now_epoch_s + _ROUNDED_UP_S
        return min(longest_s, max(_SHORTEST_PAUSE_S, in_s))


class Announcements(Duty):
    """Hears what others commit, at once: rings for mail from callers' own connections, passes on what is due soon."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings, due_mail: DueMail) -> None:
        super().__init__(settings.refresh_interval_s)
        self._store = store
        self._hosting = hosting
        self._due_mail = due_mail
        self._ear: Ear | None = None

    def _interrupts(self) -> list[int]:
        return [] if self._ear is None else [self._ear.fileno()]

    def tick(self) -> float:
        if self._ear is None:
            self._ear = self._store.listen()
            if self._ear is None:
                return self._every_s
            self._due_mail.follow(is_told=True)
        try:
            announced = self._ear.take()
        except StoreUnavailable:
            self._ear.close()
            self._ear = None
            self._due_mail.follow(is_told=False)
            raise
        self._hosting.wake(sorted(announced.shards & self._hosting.held))
        if announced.due_epoch_s is not None:
            self._due_mail.hear(announced.due_epoch_s)
        return self._every_s
