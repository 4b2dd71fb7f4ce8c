"""What kinds of messages, dead letters and states are stored, and how many of each."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.message import StoredKind
from entitycelery.placement import ShardLoad
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, transaction


class Census:
    """Statements that count. They read whole tables, and take as long as that takes."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._mail = dialect.sql(
            "SELECT 'message', type, operation, 0, count(*) FROM {message} GROUP BY type, operation "
            "UNION ALL SELECT 'dead letter', type, operation, 0, count(*) FROM {dead_letter} GROUP BY type, operation "
            "ORDER BY 1, 2, 3"
        )
        self._states = dialect.sql(
            "SELECT 'state', type, '', state_version, count(*) FROM {state} WHERE state IS NOT NULL "
            "GROUP BY type, state_version ORDER BY type, state_version"
        )

        waited_s = f"{dialect.to_epoch(dialect.now_once)} - {dialect.to_epoch('min(coalesce(due_at, sent_at))')}"
        self._loads = dialect.sql(
            f"SELECT shard_group, shard, count(*), {waited_s} FROM {{message}} GROUP BY shard_group, shard "
            "ORDER BY shard_group, shard"
        )

    def loads(self, conn: Connection) -> list[ShardLoad]:
        """What waits in each shard that has pending messages."""
        with transaction(conn, self._dialect.begin_report):
            rows = fetch(conn, self._loads)
        return [
            ShardLoad(ShardId(group, number), count, max(0.0, float(oldest_s)))
            for group, number, count, oldest_s in rows
        ]

    def take(self, conn: Connection) -> list[StoredKind]:
        """Every kind that is stored, with its number."""
        with transaction(conn, self._dialect.begin_report):
            rows = [*fetch(conn, self._mail), *fetch(conn, self._states)]
        return [StoredKind(*row) for row in rows]
