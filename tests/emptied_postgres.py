"""One PostgreSQL database for all tests of a process, emptied after each.

Making and dropping a database takes longer than most tests. A folder takes part by importing both fixtures into its
conftest.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database

_EMPTY = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend';
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname LIKE 'entity\\_%' OR nspname = 'public' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
    CREATE SCHEMA public;
END $$;
"""
# No test here crashes the server, and waiting for its disk is most of what they would do.
_DO_NOT_FLUSH = (
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$"
)


def execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()


def empty(url: str) -> None:
    """Leave nothing of a test's in a database, and nobody who works there."""
    execute(url, _EMPTY)


@pytest.fixture(scope="session")
def postgres_database(services: Services) -> Iterator[str]:
    """The PostgreSQL database that these tests share, one after the other."""
    with fresh_postgres_database(url_or_skip(services.postgres())) as url:
        execute(url, _DO_NOT_FLUSH)
        yield url


@pytest.fixture
def postgres_url(postgres_database: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    yield postgres_database
    empty(postgres_database)
