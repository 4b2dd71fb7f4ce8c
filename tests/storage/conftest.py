"""Every store in turn: in memory, a SQLite file, PostgreSQL.

The tests of this folder share one PostgreSQL database, emptied after each: making and dropping a database takes
longer than most of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from entitycelery.storage.sql.store import SqlStore
from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database
from tests.storage.support import opened

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


def execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()


@pytest.fixture(scope="session")
def storage_database(services: Services) -> Iterator[str]:
    """The PostgreSQL database of this folder's tests."""
    with fresh_postgres_database(url_or_skip(services.postgres())) as url:
        # No test here crashes the server, and waiting for its disk is most of what they would do.
        execute(
            url,
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
        )
        yield url


@pytest.fixture
def postgres_url(storage_database: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    yield storage_database
    execute(storage_database, _EMPTY)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of every kind."""
    if request.param == "memory":
        return "sqlite://"
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def store(any_url: str) -> Iterator[SqlStore]:
    """A store of every kind."""
    with opened(any_url) as made:
        yield made


@pytest.fixture
def durable(store_url: str) -> Iterator[SqlStore]:
    """A store that other processes can open too."""
    with opened(store_url) as made:
        yield made


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[SqlStore]:
    with opened(postgres_url) as made:
        yield made


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[SqlStore]:
    with opened(sqlite_url) as made:
        yield made
