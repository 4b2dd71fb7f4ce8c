"""PostgreSQL behind a transaction pooler, such as PgBouncer with `pool_mode = transaction`.

Each transaction may run in another server process, so nothing lasts longer than one: no prepared statement, no lock of
a session, no LISTEN, no setting. What a session would have is told in each transaction, polled for, or done without:
statements are planned with the server's own settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine import Connection, Engine

from entitycelery.address import ShardId
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import Ear, ReplyWaiter
from entitycelery.storage.sql.dialects.base import Locks, Role
from entitycelery.storage.sql.dialects.expiring import ExpiringRowLocks
from entitycelery.storage.sql.dialects.holds import Holds, RowHolds
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.dialects.singleton_locks import RowSingletonLocks, SingletonLocks
from entitycelery.storage.sql.statement import Statement


class PooledPostgreSQL(PostgreSQL):
    """Where `entity_lock_mode` is "rows"."""

    longest_look_s = 0.1

    begin = f"{PostgreSQL.begin}; SET LOCAL lock_timeout = 1000"
    for_users_sql = "SET LOCAL lock_timeout TO DEFAULT"
    session_id = "NULL"
    begin_report = f"{PostgreSQL.begin} READ ONLY; SET LOCAL statement_timeout = 0"

    def _statement(self, text: str) -> Statement:
        return Statement(str(super()._statement(text)))

    def _connect_args(self, role: Role, timeout_s: float, worker: str | None) -> dict[str, Any]:
        arguments = super()._connect_args(role, timeout_s, worker)
        # A pooler refuses settings that it does not know. One name for all: for another it has to tell the server.
        del arguments["options"]
        return {**arguments, "application_name": f"entitycelery {self.cluster}"}

    def locks(self, engine: Callable[[], Engine], lease_s: float) -> Locks:
        return ExpiringRowLocks(self, engine, lease_s)

    def holds(self, worker: str, deadline_s: float) -> Holds:
        return RowHolds()

    def singleton_locks(self) -> SingletonLocks:
        return RowSingletonLocks()

    def check_sessions(self) -> None:
        """Nothing: no session is needed."""

    @contextmanager
    def waiter(self, engine: Callable[[], Engine]) -> Iterator[ReplyWaiter]:
        yield PollingWaiter(self.longest_look_s)

    def concerns(self, conn: Connection, locks: int) -> list[str]:
        # Rows take no room in the server's lock table.
        return super().concerns(conn, 0)

    def after_caller_commit(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Nobody could listen for the commit; the sweep finds the messages."""

    def ear(self, engine: Callable[[], Engine]) -> Ear | None:
        # Senders tell all the same: their cluster's runners may have sessions.
        return None
