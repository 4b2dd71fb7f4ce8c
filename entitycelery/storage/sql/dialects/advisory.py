"""Claims and attention on PostgreSQL: session advisory locks."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId, lock_space
from entitycelery.storage.sql.dialects.base import Dialect, Locks
from entitycelery.storage.sql.statement import fetch, run


class AdvisoryLocks(Locks):
    """Session-level advisory locks: no write, gone the moment the session ends.

    Claims are one 64-bit key each; attention is two integers, a disjoint space, shared.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._cluster = dialect.cluster
        self._try = dialect.sql("SELECT k, pg_try_advisory_lock(k) FROM unnest(CAST(:keys AS bigint[])) AS u(k)")
        self._unlock = dialect.sql("SELECT pg_advisory_unlock(k) FROM unnest(CAST(:keys AS bigint[])) AS u(k)")
        # In autocommit an exclusive lock is gone when its statement ends. Refused: somebody will look.
        self._ask = dialect.sql(
            "SELECT n, pg_try_advisory_xact_lock(g, n) "
            "FROM unnest(CAST(:g AS int[]), CAST(:n AS int[])) WITH ORDINALITY AS u(g, n, o) ORDER BY o"
        )
        self._ask_of_one = dialect.sql(
            "SELECT NOT pg_try_advisory_xact_lock(CAST(:space AS int), CAST(:number AS int))"
        )

    @functools.lru_cache(maxsize=1000)  # noqa: B019 - lives as long as the store
    def _space(self, group: str) -> int:
        return lock_space(self._cluster, f"attention {group}")

    def _keys(self, shards: Sequence[ShardId]) -> dict[str, list[int]]:
        return {"g": [self._space(shard.group) for shard in shards], "n": [shard.number for shard in shards]}

    def attend(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, "SELECT pg_advisory_lock_shared(g, n) FROM unnest(%(g)s, %(n)s) AS u(g, n)", self._keys(shards))

    def forsake(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, "SELECT pg_advisory_unlock_shared(g, n) FROM unnest(%(g)s, %(n)s) AS u(g, n)", self._keys(shards))

    def attended(self, conn: Connection, shards: Sequence[ShardId]) -> set[ShardId]:
        rows = fetch(conn, self._ask, self._keys(shards))
        return {shard for shard, (_, granted) in zip(shards, rows, strict=True) if not granted}

    def question(self, shard: ShardId) -> tuple[str, Mapping[str, Any]]:
        return self._ask_of_one, {"space": self._space(shard.group), "number": shard.number}

    def claim(self, conn: Connection, token: str, keys: Collection[int]) -> set[int]:
        return {key for key, granted in fetch(conn, self._try, {"keys": list(keys)}) if granted}

    def release(self, conn: Connection, token: str, keys: Collection[int]) -> None:
        run(conn, self._unlock, {"keys": list(keys)})

    def release_all(self, conn: Connection, token: str) -> None:
        run(conn, "SELECT pg_advisory_unlock_all()")

    def abandon(self, token: str) -> None:
        """Nothing: the locks ended with the connection."""

    def evict(self, conn: Connection, token: str, session: int | None, since_epoch_s: float) -> bool:
        # Another process may have the number by now: then its session is younger, or has another name. One that seems
        # to begin only later is older: the clock was stepped back since.
        statement = """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %(session)s
            AND datname = current_database() AND starts_with(application_name, %(name)s)
            AND (backend_start <= to_timestamp(%(since)s) OR backend_start > clock_timestamp())
        """
        name = f"entitycelery {self._cluster} drain"
        return bool(fetch(conn, statement, {"session": session, "name": name, "since": since_epoch_s}))

    def is_claimed(self, conn: Connection, key: int) -> bool:
        # Read, not tried: a try would look like a claim to a drain.
        statement = """
            SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
                AND classid = CAST(%(high)s AS bigint) AND objid = CAST(%(low)s AS bigint)
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
        """
        return bool(fetch(conn, statement, {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF})[0][0])
