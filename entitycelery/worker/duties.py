"""What a runner does beside the drains: ring for mail that waits, ring for mail that is due, clean up."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod

from entitycelery.address import ShardId
from entitycelery.exceptions import EntityError
from entitycelery.settings import Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.transports.bell import Bell

log = logging.getLogger("entitycelery.runner")

_PURGE_BATCH = 1_000
_LONGEST_REST_S = 5.0


class Duty(ABC):
    """Something done every so often. A failure is logged, and the next try waits longer, up to 5 s."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._failures = 0
        self.next_at_s = 0.0

    def run_when_due(self, now_s: float) -> None:
        if now_s < self.next_at_s:
            return
        try:
            self.tick()
            self._failures = 0
            pause_s = self._every_s
        except EntityError as exc:
            self._failures += 1
            pause_s = min(_LONGEST_REST_S, max(self._every_s, 0.1 * 2 ** min(self._failures, 6)))
            log.warning("%s failed %d time(s): %s", type(self).__name__, self._failures, exc)
        self.next_at_s = time.monotonic() + pause_s

    @abstractmethod
    def tick(self) -> None:
        """Do it once."""


class Sweep(Duty):
    """Rings for mail that has waited longer than one refresh interval: every lost wake-up costs two at most."""

    def __init__(self, store: SqlStore, bell: Bell, settings: Settings) -> None:
        super().__init__(settings.refresh_interval_s)
        self._store = store
        self._bell = bell
        self._settings = settings
        self._first = True

    def tick(self) -> None:
        settings = self._settings
        found = self._store.waiting_shards(settings.shard_groups, settings.shards_per_group, delayed=False)
        # What waited while no runner lived is rung for at once.
        patience_s = 0.0 if self._first else settings.refresh_interval_s
        self._bell.ring([mail.shard for mail in found if mail.waiting_s >= patience_s])
        self._first = False


class DueMail(Duty):
    """Rings for delayed messages and retries that have become due."""

    def __init__(self, store: SqlStore, bell: Bell, settings: Settings) -> None:
        super().__init__(settings.due_interval_s)
        self._store = store
        self._bell = bell
        self._settings = settings
        self._rang_at_s: dict[ShardId, float] = {}

    def tick(self) -> None:
        settings = self._settings
        found = self._store.waiting_shards(settings.shard_groups, settings.shards_per_group, delayed=True)
        now_s = time.monotonic()
        fresh_s = 2 * settings.due_interval_s
        due = [
            mail.shard
            for mail in found
            if mail.waiting_s <= fresh_s
            or now_s - self._rang_at_s.get(mail.shard, -_LONGEST_REST_S) >= settings.refresh_interval_s
        ]
        self._rang_at_s.update(dict.fromkeys(due, now_s))
        self._bell.ring(due)


class CommitRelay(Duty):
    """Rings for messages that were sent on a caller's own connection, once the caller has committed."""

    def __init__(self, store: SqlStore, bell: Bell, settings: Settings) -> None:
        super().__init__(settings.due_interval_s)
        self._store = store
        self._bell = bell

    def tick(self) -> None:
        self._bell.ring(self._store.committed_shards())


class Remains(Duty):
    """Removes what dead drains left behind; until then it costs others a look."""

    def __init__(self, store: SqlStore, settings: Settings) -> None:
        super().__init__(settings.refresh_interval_s)
        self._store = store

    def tick(self) -> None:
        self._store.remove_remains()


class CleanUp(Duty):
    """Removes replies that are older than the retention, in small batches."""

    def __init__(self, store: SqlStore, settings: Settings) -> None:
        super().__init__(max(10.0, settings.refresh_interval_s))
        self._store = store
        self._retention_s = settings.reply_retention_s

    def tick(self) -> None:
        while self._store.purge_replies(self._retention_s, _PURGE_BATCH) == _PURGE_BATCH:
            log.debug("purged replies", extra={"count": _PURGE_BATCH})
