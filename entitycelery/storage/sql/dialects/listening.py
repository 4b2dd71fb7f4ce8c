"""Waiting for replies on PostgreSQL: LISTEN and NOTIFY."""

from __future__ import annotations

import os
import select
from typing import Any

import psycopg2
from sqlalchemy.engine import Connection

from entitycelery.exceptions import StoreUnavailable
from entitycelery.storage.sql.statement import run


class ListeningWaiter:
    """LISTENs on a channel of its own connection; behind it, polls with back-off from 50 ms to 1 s."""

    def __init__(self, conn: Connection) -> None:
        driver: Any = conn.connection.driver_connection
        self._conn = conn
        self._driver = driver
        info = conn.connection.info
        if "channel" not in info:
            info["channel"] = f"entity_reply_{os.urandom(8).hex()}"
            run(conn, f"LISTEN {info['channel']}")
        self.channel: str | None = info["channel"]
        self._next_poll_s = 0.05
        while select.select([self._driver], [], [], 0)[0]:
            # Old announcements; or the server's last words, behind which the end of the connection shows.
            self.take()

    def fileno(self) -> int:
        return int(self._driver.fileno())

    def take(self) -> list[str]:
        """The ids announced since the last look."""
        try:
            self._driver.poll()
        except psycopg2.Error as exc:
            self._conn.invalidate()
            raise StoreUnavailable(f"waiting for a reply: {str(exc).strip().partition(chr(10))[0]}") from exc
        ids = [notify.payload for notify in self._driver.notifies]
        self._driver.notifies.clear()
        return ids

    def wait(self, timeout_s: float) -> bool:
        pause_s = min(timeout_s, self._next_poll_s)
        self._next_poll_s = min(1.0, self._next_poll_s * 2)
        if not select.select([self._driver], [], [], pause_s)[0]:
            return False
        return bool(self.take())
