"""How much there is in the store: for operators, in one look. Reads whole tables, so no drain ever does this."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from entitycelery.message import StoreStats, TableStats
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, transaction


class Statistics:
    """The statements behind `EntityCelery.stats`."""

    def __init__(self, dialect: Dialect) -> None:
        self._begin = dialect.begin_report
        self._tables = dialect.sql(dialect.table_sizes)
        self._bytes = dialect.sql(dialect.store_size)
        now, due = dialect.now_once, "(due_at IS NULL OR due_at <= {now})"
        waited_s = f"{dialect.to_epoch(now)} - {dialect.to_epoch('coalesce(due_at, sent_at)')}"
        self._mail = dialect.sql(
            f"SELECT count(CASE WHEN {due} THEN 1 END), count(CASE WHEN NOT {due} THEN 1 END), "
            f"count(CASE WHEN last_failure IS NOT NULL THEN 1 END), max(CASE WHEN {due} THEN {waited_s} END) "
            "FROM {message}",
            now=now,
        )
        self._dead = dialect.sql("SELECT count(*) FROM {dead_letter}")
        self._replies = dialect.sql("SELECT status, count(*) FROM {reply} GROUP BY status ORDER BY status")

    def read(self, conn: Connection) -> StoreStats:
        """What there is now."""
        with transaction(conn, self._begin):
            [(waiting, delayed, retried, oldest_s)] = fetch(conn, self._mail)
            return StoreStats(
                waiting=waiting,
                delayed=delayed,
                retried=retried,
                oldest_waiting_s=None if oldest_s is None else max(0.0, float(oldest_s)),
                dead_letters=fetch(conn, self._dead)[0][0],
                replies={str(status): int(count) for status, count in fetch(conn, self._replies)},
                tables=tuple(TableStats(*row) for row in fetch(conn, self._tables)),
                size_bytes=int(fetch(conn, self._bytes)[0][0]),
            )
