"""From when on claims read what other drains have noted: older notes are known by name.

While any transaction of the database is older than a note, vacuum cannot remove what is left of it, and every batch
leaves one: each claim would read past all of them. Few notes are old, since a drain with a long turn renews its own: of
drains that ended without taking theirs back, for the most part.

A note that somebody writes below the floor, with the clock of a server that was set back, or frozen between clock and
commit, is seen a minute later, when all notes are read again; less often where that takes long. Until then a crash that
it tells of is not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from threading import Lock
from typing import NamedTuple

from sqlalchemy.engine import Connection

from entitycelery.storage.sql import floor
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch

# What was noted so long ago is committed, or will be found by the next search.
_BEHIND_S = 5.0


class _Known(NamedTuple):
    since_epoch_s: float = 0.0
    older: frozenset[str] = frozenset()


class NoteFloor:
    """What one process knows of the notes; always from the first note on where the dialect needs no floor."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        noted = dialect.to_epoch("noted_at")
        self._now = dialect.sql(f"SELECT {dialect.to_epoch(dialect.now)}")
        self._since = dialect.sql(
            f"SELECT token, {noted} FROM {{in_flight}} WHERE noted_at >= {{since}}",
            since=dialect.from_epoch(":since_epoch_s"),
        )
        self._busy = Lock()
        self._raised_at_s = time.monotonic()
        self._searched_at_s: float | None = None
        self._search_took_s = 0.0
        # Replaced, not changed, because others read without a lock; by one at a time, because two may replace it.
        self._known = _Known()
        self._replacing = Lock()

    @property
    def since_epoch_s(self) -> float:
        """Notes since then are read, by the database's clock."""
        return self._known.since_epoch_s

    @property
    def older(self) -> frozenset[str]:
        """The drains whose older notes are to be read too."""
        return self._known.older

    def forget(self, tokens: Collection[str]) -> None:
        """These drains have taken their older notes back."""
        with self._replacing:
            self._known = self._known._replace(older=self._known.older.difference(tokens))

    def raise_when_due(self, conn: Connection) -> None:
        """Raise the floor to some seconds ago, and read all notes once a minute; at most once a second."""
        if not self._dialect.keeps_what_is_dead or time.monotonic() - self._raised_at_s < floor.RAISED_EVERY_S:
            return
        with floor.unless_busy(self._busy) as free:
            if free:
                self._raise(conn)
                self._raised_at_s = time.monotonic()

    def _raise(self, conn: Connection) -> None:
        began_s = time.monotonic()
        ago_s = math.inf if self._searched_at_s is None else began_s - self._searched_at_s
        is_search = ago_s >= floor.searched_every_s(self._search_took_s)
        # Before the notes are read: what is noted meanwhile lies above.
        to_epoch_s = float(fetch(conn, self._now)[0][0]) - _BEHIND_S
        notes = fetch(conn, self._since, {"since_epoch_s": 0.0 if is_search else self._known.since_epoch_s})
        found = frozenset(token for token, noted_at in notes if noted_at < to_epoch_s)
        with self._replacing:
            self._known = _Known(to_epoch_s, found if is_search else self._known.older | found)
        if is_search:
            self._searched_at_s = began_s
            self._search_took_s = time.monotonic() - began_s
