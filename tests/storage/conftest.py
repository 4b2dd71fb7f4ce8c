"""Every store in turn: in memory, a SQLite file, PostgreSQL, and PostgreSQL with rows for locks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from entitycelery.storage.sql.store import SqlStore
from tests.emptied_postgres import postgres_database, postgres_url
from tests.storage.leases import Hosts
from tests.storage.support import LOCK_MODE_VARIABLE, opened

__all__ = ["postgres_database", "postgres_url"]

THROUGH_VARIABLE = "ENTITY_TEST_ROWS_THROUGH_PGBOUNCER"
# Modules whose tests meet what rows for locks change: claims, transactions, statements that are not prepared.
_WITH_ROWS = re.compile(
    r"test_(append|cancel|claim_order|claims|commit|crashes|fork|leases|own_transaction|protocol_\w+|runners|singletons"
    r"|unique)\.py"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the fourth store out where it would show nothing new."""
    left_out = [
        item
        for item in items
        if item.path.parent == Path(__file__).parent and _is_with_rows(item) and not _WITH_ROWS.match(item.path.name)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_with_rows(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return "rows" in (params.get("any_url"), params.get("store_url"))


@pytest.fixture
def rows_url(request: pytest.FixtureRequest, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty PostgreSQL database, where this test's stores keep their locks in rows."""
    monkeypatch.setenv(LOCK_MODE_VARIABLE, "rows")
    if not os.environ.get(THROUGH_VARIABLE):
        return postgres_url
    url: str = request.getfixturevalue("pooled_url")
    return url


@pytest.fixture(params=["memory", "sqlite", "postgresql", "rows"])
def any_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of every kind."""
    return _url_of(request)


@pytest.fixture(params=["sqlite", "postgresql", "rows"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store that other processes can open too."""
    return _url_of(request)


def _url_of(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "sqlite://"
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "rows": "rows_url"}[request.param]
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


@pytest.fixture
def hosts(store_url: str) -> Iterator[Hosts]:
    """Runners on every store that several processes can open."""
    yield from _hosts(store_url)


@pytest.fixture
def session_hosts(postgres_url: str) -> Iterator[Hosts]:
    """Runners whose leases are locks of their sessions."""
    yield from _hosts(postgres_url)


@pytest.fixture(params=["sqlite", "rows"])
def row_hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Runners whose leases are rows that expire."""
    yield from _hosts(request.getfixturevalue({"sqlite": "sqlite_url", "rows": "rows_url"}[request.param]))


def _hosts(url: str) -> Iterator[Hosts]:
    made = Hosts(url)
    with made.stack:
        yield made
