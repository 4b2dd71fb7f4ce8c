"""Waiting for SQLite's one writer in short naps.

The driver's own naps grow to 100 ms: with a few processes that write, most of the time nobody does.
"""

from __future__ import annotations

import random
import sqlite3
import time
from typing import Any

_LONGEST_NAP_S = 0.002
# The second one while another connection makes the log usable: at the first use of a file, and after a crash.
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY)


class PatientConnection(sqlite3.Connection):
    """A connection whose statements wait up to `timeout` seconds for the transaction of another to end."""

    def __init__(self, database: Any, timeout: float = 5.0, **options: Any) -> None:
        super().__init__(database, timeout=0.0, **options)
        self.patience_s = timeout

    def cursor(self, factory: Any = None) -> Any:
        """A cursor that waits."""
        return super().cursor(factory or PatientCursor)

    def execute(self, *args: Any) -> sqlite3.Cursor:
        """Run a statement on a cursor of its own; the driver would make one that does not wait."""
        cursor: sqlite3.Cursor = self.cursor().execute(*args)
        return cursor


class PatientCursor(sqlite3.Cursor):
    """Tries a statement again that was refused because another connection writes."""

    connection: PatientConnection
    _latest: tuple[Any, ...] = ()

    def fetchall(self) -> list[Any]:
        """All rows. Text that is no UTF-8 was written by somebody else, and must not hold up the rows beside it."""
        try:
            return super().fetchall()
        except sqlite3.OperationalError as exc:
            if "decode to UTF-8" not in str(exc):
                raise
        self.connection.text_factory = _legible
        try:
            return super().execute(*self._latest).fetchall()
        finally:
            self.connection.text_factory = str

    def execute(self, *args: Any) -> PatientCursor:
        """Run a statement, as the driver's cursor does."""
        self._latest = args
        give_up_at_s: float | None = None
        while True:
            try:
                super().execute(*args)
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode not in _BUSY:
                    raise
                now_s = time.monotonic()
                if give_up_at_s is None:
                    give_up_at_s = now_s + self.connection.patience_s
                elif now_s >= give_up_at_s:
                    raise
            else:
                return self
            # At random, so that those who wait do not all come back at the same moment.
            time.sleep(random.uniform(0.0, _LONGEST_NAP_S))


def _legible(text: bytes) -> str:
    return text.decode(errors="replace")
