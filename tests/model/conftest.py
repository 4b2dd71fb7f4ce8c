"""Every kind of store, as in the tests of the storage."""

from __future__ import annotations

import pytest

from tests.emptied_postgres import execute, postgres_database
from tests.emptied_postgres import postgres_url as emptied_afterwards

__all__ = ["emptied_afterwards", "postgres_database", "postgres_url"]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of every kind."""
    if request.param == "memory":
        return "sqlite://"
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


@pytest.fixture
def postgres_url(emptied_afterwards: str) -> str:
    """An empty PostgreSQL database."""
    # Looking at whole tables is no hot path: what a compiler would spend on it is most of the time.
    execute(
        emptied_afterwards, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET jit = off', current_database()); END $$"
    )
    return emptied_afterwards
