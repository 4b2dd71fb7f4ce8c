"""Leases on PostgreSQL: locks of one session, and a second session that waits for somebody's death.

All keys are two integers: the kind and cluster, and the shard's number or the runner's instance.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Sequence
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId, lock_space
from entitycelery.exceptions import StoreUnavailable
from entitycelery.storage.sql.dialects.holds import Holds
from entitycelery.storage.sql.statement import fetch, run

_LOCK = "SELECT g, n, pg_try_advisory_lock(g, n) FROM unnest(%(g)s::int[], %(n)s::int[]) AS u(g, n)"
_UNLOCK = "SELECT pg_advisory_unlock(g, n) FROM unnest(%(g)s::int[], %(n)s::int[]) AS u(g, n)"
_HELD = """
    SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND mode = 'ExclusiveLock' AND classid::bigint = %(space)s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_END = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
    AND pid <> pg_backend_pid() AND application_name = ANY(%(names)s)
"""


class SessionHolds(Holds):
    """Advisory locks of the lease session: gone the moment its process is, and kept by a frozen one."""

    are_rows = False

    def __init__(self, cluster: str, connect: Callable[[], Any]) -> None:
        self._cluster = cluster
        self._channel = f"entity_{cluster}_runners"
        self._runner_space = lock_space(cluster, "runner")
        self._watcher = _Watcher(connect, self._runner_space)

    def begin(self, conn: Connection) -> None:
        run(conn, f"LISTEN {self._channel}")

    def hold_runner(self, conn: Connection, instance: str) -> None:
        given = {"space": self._runner_space, "n": lock_number(instance)}
        [(granted,)] = fetch(conn, "SELECT pg_try_advisory_lock(%(space)s, %(n)s)", given)
        if not granted:
            raise StoreUnavailable(f"the instance {instance} is another runner's: trying another")

    def locked(self, conn: Connection, runners: Sequence[tuple[str, str | None]]) -> dict[str, bool]:
        held = {row[0] for row in fetch(conn, _HELD, {"space": self._runner_space & 0xFFFFFFFF})}
        return {instance: lock_number(instance) & 0xFFFFFFFF in held for instance, _ in runners}

    def lock(self, conn: Connection, shards: Sequence[ShardId]) -> list[ShardId]:
        rows = fetch(conn, _LOCK, self._keys(shards))
        return [shard for shard, (_, _, granted) in zip(shards, rows, strict=True) if granted]

    def unlock(self, conn: Connection, shards: Collection[ShardId]) -> None:
        run(conn, _UNLOCK, self._keys(shards))

    def unlock_all(self, conn: Connection) -> None:
        run(conn, "SELECT pg_advisory_unlock_all()")

    def announce(self, conn: Connection) -> None:
        run(conn, f"NOTIFY {self._channel}")

    def end_sessions(self, conn: Connection, worker: str, *, drains: bool) -> None:
        kinds = ("lease", "watch", "drain", "singleton") if drains else ("lease",)
        names = [f"entitycelery {self._cluster} {kind} {worker}" for kind in kinds]
        run(conn, _END, {"names": names})

    def watch(self, instance: str | None) -> None:
        self._watcher.watch(None if instance is None else lock_number(instance))

    def wait(self, conn: Connection, timeout_s: float, interrupt: int) -> None:
        driver: Any = conn.connection.driver_connection
        if driver.notifies:
            driver.notifies.clear()
            return
        watching = self._watcher.waits_for()
        reading = [driver, interrupt, *watching.reading]
        ready, writable, _ = select.select(reading, watching.writing, [], timeout_s)
        if driver in ready:
            try:
                driver.poll()
            except psycopg2.Error as exc:
                conn.invalidate()
                raise StoreUnavailable(f"the lease session ended: {str(exc).strip().partition(chr(10))[0]}") from exc
            driver.notifies.clear()
        if writable or set(ready) & set(watching.reading):
            self._watcher.go_on()

    def close(self) -> None:
        self._watcher.watch(None)

    def _keys(self, shards: Collection[ShardId]) -> dict[str, list[int]]:
        spaces = {group: lock_space(self._cluster, f"lease {group}") for group in {shard.group for shard in shards}}
        return {"g": [spaces[shard.group] for shard in shards], "n": [shard.number for shard in shards]}


def lock_number(instance: str) -> int:
    """The signed 32-bit second key of a runner's lock: its instance, eight hexadecimal digits."""
    return int.from_bytes(bytes.fromhex(instance), "big", signed=True)


class _Waits:
    """What a watcher waits to read from and to write to."""

    def __init__(self, reading: list[Any], writing: list[Any]) -> None:
        self.reading = reading
        self.writing = writing


class _Watcher:
    """A session that waits for a runner's lock, shared: it gets it the moment that runner's session is gone.

    Shared, so that it never looks like the runner itself, and asynchronous, so that nothing waits for it.
    """

    def __init__(self, connect: Callable[[], Any], space: int) -> None:
        self._connect = connect
        self._space = space
        self._number: int | None = None
        self._connection: Any = None
        self._state = extensions.POLL_OK
        self._asked = False

    def watch(self, number: int | None) -> None:
        """Watch another runner, or none."""
        if number == self._number and (number is None or self._connection is not None):
            return
        self._number = number
        self._end()
        if number is not None:
            self._begin()

    def waits_for(self) -> _Waits:
        """For `select`."""
        if self._connection is None:
            return _Waits([], [])
        if self._state == extensions.POLL_WRITE:
            return _Waits([], [self._connection])
        return _Waits([self._connection], [])

    def go_on(self) -> None:
        """Something can be read or written."""
        try:
            self._state = self._connection.poll()
            if self._state != extensions.POLL_OK:
                return
            if self._asked:
                # Granted: that runner is gone. Whoever waits looks who is still there.
                self._end()
                return
            statement = "SELECT pg_advisory_lock_shared(%s, %s)"
            self._connection.cursor().execute(statement, (self._space, self._number))
            self._asked = True
            self._state = self._connection.poll()
        except psycopg2.Error:
            # The next look at the table finds out anyway, only later.
            self._end()

    def _begin(self) -> None:
        try:
            self._connection = self._connect()
            self._asked = False
            self._state = extensions.POLL_WRITE
        except psycopg2.Error:
            self._connection = None

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
