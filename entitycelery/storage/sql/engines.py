"""Connections: which database a store is on, and an engine for each thing that it does there.

Knows about processes: engines are made anew after a fork, without touching the parent's sockets.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.engine import Connection, Engine

from entitycelery.exceptions import ConfigurationError
from entitycelery.storage.sql.dialects.base import Dialect, Role
from entitycelery.storage.sql.dialects.deadline import answers_within
from entitycelery.storage.sql.dialects.pooled import PooledPostgreSQL
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.dialects.sqlite import SQLite
from entitycelery.storage.sql.statement import store_errors

DIALECTS: dict[tuple[str, str], type[PostgreSQL] | type[SQLite]] = {
    ("postgresql+psycopg2", "advisory"): PostgreSQL,
    ("postgresql+psycopg2", "rows"): PooledPostgreSQL,
    ("sqlite+pysqlite", "advisory"): SQLite,
    ("sqlite+pysqlite", "rows"): SQLite,
}


class Engines:
    """The engines of one store in this process."""

    def __init__(self, dialect: Dialect, connections: int, timeout_s: float) -> None:
        self._dialect = dialect
        self._connections = connections
        self._timeout_s = timeout_s
        self._by_role: dict[Role, Engine] = {}
        self._mutex = threading.Lock()
        self._pid = os.getpid()

    @contextmanager
    def use(self, doing: str) -> Iterator[Connection]:
        """A connection for whoever sends, reads or looks after the store; its errors are ours."""
        with store_errors(doing), self._dialect.guard, self.of("client").connect() as conn:
            yield conn

    @contextmanager
    def lease(
        self, worker: str, deadline_s: float, *, role: Role = "lease", connects_within_s: float | None = None
    ) -> Iterator[Connection]:
        """A connection that is in nobody's pool and ends with this."""
        shared = self.of("client") if self._dialect.guard_is_shared else None
        engine = shared or self._dialect.lease_engine(worker, deadline_s, role)
        try:
            with store_errors("connecting a runner"), answers_within(connects_within_s or deadline_s):
                conn = engine.connect()
            with conn:
                yield conn
        finally:
            if shared is None:
                engine.dispose()

    def of(self, role: Role) -> Engine:
        """The engine for a role, made at first use in each process."""
        if self._pid != os.getpid():
            # A thread of the parent may have held it at the fork, and that thread is not here to give it back.
            self._mutex = threading.Lock()
        with self._mutex:
            if self._pid != os.getpid():
                # The parent's sockets are not ours: forget them without saying goodbye on them.
                for engine in self._by_role.values():
                    engine.dispose(close=False)
                self._by_role.clear()
                self._pid = os.getpid()
            shared: Role = "client" if self._dialect.guard_is_shared else role
            if shared not in self._by_role:
                self._by_role[shared] = self._dialect.engine(shared, self._connections, self._timeout_s)
            return self._by_role[shared]

    def close(self) -> None:
        """Give all connections back."""
        with self._mutex:
            engines, self._by_role = self._by_role, {}
        for engine in engines.values():
            engine.dispose()


def callers_connection(given: Any) -> Connection:
    """What `options(connection=...)` was given, as a connection.

    Raises:
        ConfigurationError: It is neither a connection nor a session of SQLAlchemy.
    """
    # Whoever has a session has imported the ORM; nobody else is to wait for that.
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(given, orm.Session):
        connection: Connection = given.connection()
        return connection
    if isinstance(given, Connection):
        return given
    raise ConfigurationError(
        "options(connection=...) takes a SQLAlchemy Connection or Session, "
        f"got {type(given).__module__}.{type(given).__name__}"
    )
