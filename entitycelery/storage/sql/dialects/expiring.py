"""Claims and attention on PostgreSQL behind a transaction pooler: rows that expire.

A session there lasts for one transaction, so nothing can be tied to it. A drain that dies, or is frozen, keeps what it
holds until that expires by the database's clock; a drain that wakes up later finds its commit refused, by the versions
and pending checks of the commit, not by anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection, Engine

from entitycelery.address import ShardId
from entitycelery.storage.sql.dialects.base import Dialect, Locks
from entitycelery.storage.sql.dialects.renewal import Renewal
from entitycelery.storage.sql.statement import fetch, run, store_errors

_RENEWALS_PER_LEASE = 3


class ExpiringRowLocks(Locks):
    """Rows of the table `lock`, each statement a transaction of its own.

    Whoever locks several rows does so in order of kind and key, so that no two wait for each other.
    """

    def __init__(self, dialect: Dialect, engine: Callable[[], Engine], lease_s: float) -> None:
        self._engine = engine
        self._lease_s = lease_s
        self._renewal = Renewal(self._renew, lease_s / _RENEWALS_PER_LEASE)
        self._abandoned: set[str] = set()
        lives = "expires_at >= clock_timestamp()"
        expires = dialect.after(":lease_s")
        # By lock_claim. What is seen to live is not tried: a try that is refused locks its row, which is a write.
        self._claim = dialect.sql(
            f"INSERT INTO {{lock}} AS held (kind, key, token, expires_at) SELECT 'claim', k, :token, {expires} "
            "FROM unnest(CAST(:keys AS text[])) AS k "
            f"WHERE NOT EXISTS (SELECT 1 FROM {{lock}} AS l WHERE l.kind = 'claim' AND l.key = k AND l.{lives}) "
            "ORDER BY k COLLATE \"C\" ON CONFLICT (key) WHERE kind = 'claim' "
            "DO UPDATE SET token = excluded.token, expires_at = excluded.expires_at "
            "WHERE held.expires_at < clock_timestamp() RETURNING key"
        )
        claims = "{a}.kind = 'claim' AND {a}.key = ANY(:keys) AND {a}.token = :token"
        self._release = dialect.sql(_in_order(claims, "DELETE FROM {lock} AS l USING mine"))
        # By lock_token.
        self._release_all = dialect.sql(_in_order("{a}.token = :token", "DELETE FROM {lock} AS l USING mine"))
        # What has expired stays so: somebody may have seen it.
        living = f"{{a}}.token = ANY(:tokens) AND {{a}}.{lives}"
        self._extend = dialect.sql(_in_order(living, f"UPDATE {{lock}} AS l SET expires_at = {expires} FROM mine"))
        # By lock_attention.
        self._attend = dialect.sql(
            f"INSERT INTO {{lock}} (kind, key, token, expires_at) SELECT 'attention', k, :token, {expires} "
            "FROM unnest(CAST(:keys AS text[])) AS k ON CONFLICT (key, token) WHERE kind = 'attention' "
            "DO UPDATE SET expires_at = excluded.expires_at"
        )
        self._forsake = dialect.sql(
            "DELETE FROM {lock} WHERE kind = 'attention' AND key = ANY(:keys) AND token = :token"
        )
        self._attended = dialect.sql(
            f"SELECT DISTINCT key FROM {{lock}} WHERE kind = 'attention' AND key = ANY(:keys) AND {lives}"
        )
        self._is_attended = dialect.sql(
            f"SELECT EXISTS (SELECT 1 FROM {{lock}} WHERE kind = 'attention' AND key = :shard AND {lives})"
        )
        self._is_claimed = dialect.sql(
            f"SELECT EXISTS (SELECT 1 FROM {{lock}} WHERE kind = 'claim' AND key = :key AND {lives})"
        )
        # Nobody waits for these, and a claim takes them over as well.
        expired = "{a}.expires_at < clock_timestamp()"
        self._remove_expired = dialect.sql(
            _in_order(expired, "DELETE FROM {lock} AS l USING mine", "FOR UPDATE SKIP LOCKED")
        )

    def attend(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        self._renewal.add(token)
        run(conn, self._attend, {"token": token, "keys": _texts(shards), "lease_s": self._lease_s})

    def forsake(self, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, self._forsake, {"token": token, "keys": _texts(shards)})

    def attended(self, conn: Connection, shards: Sequence[ShardId]) -> set[ShardId]:
        found = {row[0] for row in fetch(conn, self._attended, {"keys": _texts(shards)})}
        return {shard for shard in shards if str(shard) in found}

    def question(self, shard: ShardId) -> tuple[str, Mapping[str, Any]]:
        return self._is_attended, {"shard": str(shard)}

    def claim(self, conn: Connection, token: str, keys: Collection[int]) -> set[int]:
        for abandoned in tuple(self._abandoned):
            run(conn, self._release_all, {"token": abandoned})
            self._abandoned.discard(abandoned)
        self._renewal.add(token)
        given = {"token": token, "keys": _texts(keys), "lease_s": self._lease_s}
        return {int(key) for (key,) in fetch(conn, self._claim, given)}

    def release(self, conn: Connection, token: str, keys: Collection[int]) -> None:
        run(conn, self._release, {"token": token, "keys": _texts(keys)})

    def release_all(self, conn: Connection, token: str) -> None:
        self._renewal.remove(token)
        run(conn, self._release_all, {"token": token})

    def abandon(self, token: str) -> None:
        self._renewal.remove(token)
        # Sooner than it would expire: the next claim of this process removes it.
        self._abandoned.add(token)

    def evict(self, conn: Connection, token: str, session: int | None, since_epoch_s: float) -> bool:
        return bool(run(conn, self._release_all, {"token": token}))

    def remove_dead(self, conn: Connection) -> None:
        run(conn, self._remove_expired)

    def is_claimed(self, conn: Connection, key: int) -> bool:
        return bool(fetch(conn, self._is_claimed, {"key": str(key)})[0][0])

    def _renew(self, tokens: Sequence[str]) -> None:
        with store_errors("renewing claims"), self._engine().connect() as conn:
            run(conn, self._extend, {"tokens": list(tokens), "lease_s": self._lease_s})


def _in_order(which: str, change: str, lock: str = "FOR UPDATE") -> str:
    """A change of those rows, locked in one order; `which` calls them `{a}`.

    Not by ctid: a row that was renewed while it was waited for has another one, which this statement does not see.
    """
    mine, ours = which.replace("{a}", "m"), which.replace("{a}", "l")
    return (
        f"WITH mine AS (SELECT kind, key, token FROM {{lock}} AS m WHERE {mine} ORDER BY kind, key, token {lock}) "
        f"{change} WHERE {ours} AND l.kind = mine.kind AND l.key = mine.key AND l.token = mine.token"
    )


def _texts(values: Collection[object]) -> list[str]:
    return [str(value) for value in values]
