"""Hearing on PostgreSQL of what others committed, by LISTEN and NOTIFY: replies, mail from callers, due moments."""

from __future__ import annotations

import os
import re
import select
from typing import Any

import psycopg2
from sqlalchemy.engine import Connection

from entitycelery.address import parse_shard
from entitycelery.exceptions import StoreUnavailable
from entitycelery.storage.port import Announced
from entitycelery.storage.sql.statement import run

_MOMENT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")
_SHARD = re.compile(r".+\.[0-9]{1,9}")


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
        self._heard: dict[str, str] = {}
        while select.select([self._driver], [], [], 0)[0]:
            # Old announcements; or the server's last words, behind which the end of the connection shows.
            self.take()

    def fileno(self) -> int:
        return int(self._driver.fileno())

    def take(self) -> list[str]:
        """The ids announced since the last look."""
        said = [payload.partition("\n") for _, payload in _taken(self._conn, self._driver, "waiting for a reply")]
        self._heard = {message_id: result for message_id, _, result in said if result}
        return [message_id for message_id, _, _ in said]

    def heard(self, message_id: str) -> str | None:
        return self._heard.get(message_id)

    def wait(self, timeout_s: float) -> bool:
        pause_s = min(timeout_s, self._next_poll_s)
        self._next_poll_s = min(1.0, self._next_poll_s * 2)
        if not select.select([self._driver], [], [], pause_s)[0]:
            return False
        return bool(self.take())


class ListeningEar:
    """LISTENs on a connection of its own, which is thrown away at the end."""

    def __init__(self, conn: Connection, ring_channel: str, due_channel: str) -> None:
        driver: Any = conn.connection.driver_connection
        self._conn = conn
        self._driver = driver
        self._due_channel = due_channel
        run(conn, f"LISTEN {ring_channel}; LISTEN {due_channel}")

    def fileno(self) -> int:
        return int(self._driver.fileno())

    def take(self) -> Announced:
        taken = _taken(self._conn, self._driver, "listening to commits")
        # Anybody may notify on a channel, and say anything.
        moments = [float(said) for channel, said in taken if channel == self._due_channel and _MOMENT.fullmatch(said)]
        rung = [said for channel, said in taken if channel != self._due_channel and _SHARD.fullmatch(said)]
        return Announced(frozenset(map(parse_shard, rung)), min(moments, default=None))

    def close(self) -> None:
        # Back in the pool it would go on listening.
        self._conn.invalidate()
        self._conn.close()


def _taken(conn: Connection, driver: Any, doing: str) -> list[tuple[str, str]]:
    """The channel and payload of each notification that has come."""
    try:
        driver.poll()
    except psycopg2.Error as exc:
        conn.invalidate()
        raise StoreUnavailable(f"{doing}: {str(exc).strip().partition(chr(10))[0]}") from exc
    taken = [(notify.channel, notify.payload) for notify in driver.notifies]
    driver.notifies.clear()
    return taken
