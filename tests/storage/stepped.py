"""A database whose clock a test steps: SQLite asks our function, PostgreSQL one that it finds before its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from sqlalchemy.engine import URL

from entitycelery.storage.sql import engines
from entitycelery.storage.sql.dialects.sqlite import SQLite

HOUR_S = 3600.0
_DRIVER = "sqlite+pysqlite"
# Only a function in a schema that is looked through before pg_catalog goes before the server's.
_OWN_CLOCK = """
CREATE SCHEMA IF NOT EXISTS stepped;
CREATE TABLE IF NOT EXISTS stepped.clock (off interval NOT NULL);
TRUNCATE stepped.clock;
INSERT INTO stepped.clock VALUES (interval '0');
CREATE OR REPLACE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.clock_timestamp() + off FROM stepped.clock';
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = stepped, pg_catalog, public', current_database());
END $$;
"""


class SteppedClock:
    """The clock of the database at `url`, as every store sees it that is opened from now on."""

    def __init__(self, url: str, patch: pytest.MonkeyPatch) -> None:
        self.url = url
        self._off_s = 0.0
        if url.startswith("sqlite"):
            patch.setitem(engines.DIALECTS, (_DRIVER, "advisory"), self._sqlite)  # type: ignore[arg-type]
            patch.setitem(engines.DIALECTS, (_DRIVER, "rows"), self._sqlite)  # type: ignore[arg-type]
        else:
            self._execute(_OWN_CLOCK)

    def step(self, by_s: float) -> None:
        """Step it: forward, or with a negative number back."""
        self._off_s += by_s
        if not self.url.startswith("sqlite"):
            self._execute("UPDATE stepped.clock SET off = off + %s * interval '1 second'", (by_s,))

    def _sqlite(self, url: URL, cluster: str) -> SQLite:
        return SQLite(url, cluster, clock=lambda: time.time() + self._off_s)

    def _execute(self, statement: str, parameters: Any = None) -> None:
        with _connected(self.url) as connection:
            connection.cursor().execute(statement, parameters)


@contextmanager
def _connected(url: str) -> Iterator[Any]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()
