"""What a runner does beside the drains: wake for mail that waits, clean up. For mail that is due see due_mail.

Wakes go to its own worker, without the broker.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from entitycelery.address import ShardId
from entitycelery.exceptions import EntityError
from entitycelery.settings import Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.telemetry import happened

log = logging.getLogger("entitycelery.runner")

_PURGE_BATCH = 1_000
_LONGEST_REST_S = 5.0
_FRESH_EVERY_S = 0.1


class Duty(ABC):
    """Something done every so often, or when something can be read. A failure is logged, and the next try waits longer,
    up to 5 s."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._failures = 0
        self.next_at_s = 0.0

    def run_when_due(self, now_s: float) -> None:
        if now_s < self.next_at_s:
            return
        try:
            pause_s = self.tick()
            self._failures = 0
        except EntityError as exc:
            self._failures += 1
            pause_s = min(_LONGEST_REST_S, max(self._every_s, 0.1 * 2 ** min(self._failures, 6)))
            log.warning("%s failed %d time(s): %s", type(self).__name__, self._failures, exc)
        self.next_at_s = time.monotonic() + pause_s

    @property
    def interrupts(self) -> list[int]:
        """File descriptors that can be read when it is to be done at once. After a failure nothing hastens it."""
        return [] if self._failures else self._interrupts()

    def _interrupts(self) -> list[int]:
        return []

    @abstractmethod
    def tick(self) -> float:
        """Do it once; how many seconds to wait until the next time."""


class Hosting(Protocol):
    """What the duties know of their runner."""

    @property
    def held(self) -> frozenset[ShardId]:
        """The shards that it hosts now."""

    @property
    def fresh(self) -> frozenset[ShardId]:
        """Those that it has taken just now."""

    @property
    def moved(self) -> int:
        """A file descriptor that can be read when `held` has changed; `settle_moved` makes it unreadable again."""

    def settle_moved(self) -> None:
        """That `held` has changed is known."""

    @property
    def is_first(self) -> bool:
        """Whether it does what one runner of the cluster has to do."""

    def wake(self, shards: Sequence[ShardId]) -> None:
        """Have the worker look for mail."""


class Sweep(Duty):
    """Rings for mail that has waited longer than one refresh interval: every lost wake-up costs two at most."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings) -> None:
        super().__init__(settings.refresh_interval_s)
        self._store = store
        self._hosting = hosting
        self._patience_s = settings.refresh_interval_s

    def tick(self) -> float:
        found = self._store.waiting_shards(sorted(self._hosting.held))
        # What was sent before the database's clock was stepped back waits since nobody knows when.
        self._hosting.wake([mail.shard for mail in found if not 0 <= mail.waiting_s < self._patience_s])
        return self._every_s


class FreshSweep(Duty):
    """Rings often for mail in shards that were taken just now, whose queues the worker may not see yet."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings) -> None:
        super().__init__(min(_FRESH_EVERY_S, settings.refresh_interval_s))
        self._store = store
        self._hosting = hosting

    def tick(self) -> float:
        found = self._store.waiting_shards(sorted(self._hosting.fresh))
        self._hosting.wake([mail.shard for mail in found])
        return self._every_s


class Remains(Duty):
    """Removes what dead drains left behind, and takes the claims of frozen ones."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings) -> None:
        super().__init__(settings.refresh_interval_s)
        self._store = store
        self._hosting = hosting
        self._silent_for_s = settings.lease_timeout_s

    def tick(self) -> float:
        if self._hosting.is_first:
            for token in self._store.remove_remains(self._silent_for_s):
                log.warning("a drain said nothing for %g s: its entities are free", self._silent_for_s)
                happened("entity.drain.evicted", token=token)
        return self._every_s


class CleanUp(Duty):
    """Removes replies that are older than the retention, and rows of keys that are free, in small batches: other duties
    have their turn in between."""

    def __init__(self, store: SqlStore, hosting: Hosting, settings: Settings) -> None:
        super().__init__(max(10.0, settings.refresh_interval_s))
        self._store = store
        self._hosting = hosting
        self._retention_s = settings.reply_retention_s

    def tick(self) -> float:
        if not self._hosting.is_first:
            return self._every_s
        replies = self._store.purge_replies(self._retention_s, _PURGE_BATCH)
        keys = self._store.purge_unique_keys(_PURGE_BATCH)
        if max(replies, keys) < _PURGE_BATCH:
            return self._every_s
        log.debug("purged replies and keys", extra={"replies": replies, "keys": keys})
        return 0.0
