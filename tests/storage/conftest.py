"""Every store in turn: in memory, a SQLite file, PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import opened


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
