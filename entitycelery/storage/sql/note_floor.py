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


class KnownNotes(NamedTuple):
    """Which notes to read."""

    since_epoch_s: float = 0.0
    """All since then, by the database's clock."""
    older: frozenset[str] = frozenset()
    """And those of these drains."""


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
        self._pace = floor.Pace(begins_at_once=True)
        self._searched_at_s = -math.inf
        self._search_took_s = 0.0
        self.known = KnownNotes()
        """Replaced, not changed: others read it without a lock."""
        self._replacing = Lock()

    def forget(self, tokens: Collection[str]) -> None:
        """These drains have taken their older notes back."""
        with self._replacing:
            self.known = self.known._replace(older=self.known.older.difference(tokens))

    def raise_when_due(self, conn: Connection) -> None:
        """Raise the floor to some seconds ago, and read all notes once a minute; at most once a second."""
        if not self._dialect.keeps_what_is_dead:
            return
        with self._pace.once_a_second() as due:
            if due:
                self._raise(conn)

    def _raise(self, conn: Connection) -> None:
        began_s = time.monotonic()
        every_s = floor.searched_every_s(self._search_took_s, at_most_every_s=floor.SEARCHED_EVERY_S)
        is_search = began_s - self._searched_at_s >= every_s
        # Before the notes are read: what is noted meanwhile lies above.
        to_epoch_s = float(fetch(conn, self._now)[0][0]) - _BEHIND_S
        notes = fetch(conn, self._since, {"since_epoch_s": 0.0 if is_search else self.known.since_epoch_s})
        found = frozenset(token for token, noted_at in notes if noted_at < to_epoch_s)
        with self._replacing:
            self.known = KnownNotes(to_epoch_s, found if is_search else self.known.older | found)
        if is_search:
            self._searched_at_s = began_s
            self._search_took_s = time.monotonic() - began_s
