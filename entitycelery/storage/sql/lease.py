"""The table `lease`: who holds which shard, since when, for the how-many-eth time.

Where leases are locks of a session the rows only tell; elsewhere they are the leases.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.clock import utc_from_epoch
from entitycelery.placement import Lease
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, run

_UPSERT = """
    INSERT INTO {lease} AS l (shard_group, shard, holder, epoch, since, expires_at)
    SELECT r.shard_group, r.shard, :holder, 1, {now}, {expires} FROM {rows} WHERE true
    ORDER BY r.shard_group, r.shard
    ON CONFLICT (shard_group, shard) DO UPDATE
        SET holder = excluded.holder, epoch = l.epoch + 1, since = excluded.since, expires_at = excluded.expires_at
        WHERE {free}
    RETURNING shard_group, shard, epoch
"""
_FREE = (
    "(l.holder IS NULL OR l.expires_at < {now} OR NOT EXISTS (SELECT 1 FROM {runner} AS o WHERE o.instance = l.holder))"
)


class Leases:
    """Statements over the primary key (shard_group, shard), or over the whole of some hundred rows."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        rows = dialect.rowset("rows", shard_group="text", shard="int")
        now = dialect.now
        free = _FREE.replace("{now}", now).replace("{runner}", dialect.table("runner"))
        given = {"rows": rows, "now": now}
        self._take = dialect.sql(_UPSERT, expires=dialect.after(":lease_s"), free=free, **given)
        self._record = dialect.sql(_UPSERT, expires="NULL", free="true", **given)
        self._renew = dialect.sql(
            f"UPDATE {{lease}} SET expires_at = {dialect.after(':lease_s')} WHERE holder = :holder "
            f"AND expires_at >= {now} RETURNING shard_group, shard"
        )
        self._give = dialect.sql(
            "UPDATE {lease} SET holder = NULL, since = NULL, expires_at = NULL WHERE holder = :holder AND EXISTS "
            "(SELECT 1 FROM {rows} WHERE r.shard_group = {lease}.shard_group AND r.shard = {lease}.shard)",
            rows=rows,
        )
        self._give_all = dialect.sql(
            "UPDATE {lease} SET holder = NULL, since = NULL, expires_at = NULL WHERE holder = :holder"
        )
        self._list = dialect.sql(
            f"SELECT shard_group, shard, holder, epoch, {dialect.to_epoch('since')} FROM {{lease}} "
            "ORDER BY shard_group, shard"
        )

    def take(self, conn: Connection, holder: str, shards: Collection[ShardId], lease_s: float) -> dict[ShardId, int]:
        """Those of the shards that nobody held, for so long; with their epochs."""
        given = {"holder": holder, "lease_s": lease_s, "rows": self._rows(shards)}
        return {ShardId(group, number): epoch for group, number, epoch in fetch(conn, self._take, given)}

    def record(self, conn: Connection, holder: str, shards: Collection[ShardId]) -> dict[ShardId, int]:
        """Say that `holder` has the locks of these shards; their epochs."""
        rows = fetch(conn, self._record, {"holder": holder, "rows": self._rows(shards)})
        return {ShardId(group, number): epoch for group, number, epoch in rows}

    def renew(self, conn: Connection, holder: str, lease_s: float) -> frozenset[ShardId]:
        """Extend what has not run out; what is still held."""
        rows = fetch(conn, self._renew, {"holder": holder, "lease_s": lease_s})
        return frozenset(ShardId(group, number) for group, number in rows)

    def give(self, conn: Connection, holder: str, shards: Collection[ShardId]) -> None:
        """Nobody holds these any more, if it was `holder`."""
        run(conn, self._give, {"holder": holder, "rows": self._rows(shards)})

    def give_all(self, conn: Connection, holder: str) -> None:
        """Nobody holds any more what `holder` held."""
        run(conn, self._give_all, {"holder": holder})

    def read(self, conn: Connection) -> tuple[Lease, ...]:
        """All leases that there have been."""
        return tuple(
            Lease(ShardId(group, number), holder, epoch, None if since is None else utc_from_epoch(since))
            for group, number, holder, epoch, since in fetch(conn, self._list)
        )

    def _rows(self, shards: Collection[ShardId]) -> str:
        rows: Sequence[dict[str, object]] = [
            {"shard_group": shard.group, "shard": shard.number} for shard in sorted(shards)
        ]
        return self._dialect.rows(rows)
