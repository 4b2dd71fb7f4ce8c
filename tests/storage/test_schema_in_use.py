"""A process that starts while others write needs no lock of theirs to find the schema and the views in order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url

VIEWS = [("state_account", "Account", {"balance": "int"})]


@pytest.fixture
def store(sqlite_url: str) -> Iterator[SqlStore]:
    found = SqlStore(driver_url(sqlite_url), cluster="default", shards_per_group=64, connections=2, timeout_s=0.2)
    with closing(found):
        yield found


@pytest.fixture
def writer(store: SqlStore) -> Iterator[sqlite3.Connection]:
    """Somebody who holds SQLite's only write lock from the moment that BEGIN IMMEDIATE is said."""
    with closing(sqlite3.connect(str(store.url.database), isolation_level=None)) as connection:
        yield connection


def test_an_upgraded_store_is_found_so_while_another_process_writes(
    store: SqlStore, writer: sqlite3.Connection
) -> None:
    store.schema.upgrade()
    writer.execute("BEGIN IMMEDIATE")

    assert store.schema.upgrade() == []


def test_views_that_are_as_wanted_stay_while_another_process_writes(
    store: SqlStore, writer: sqlite3.Connection
) -> None:
    store.schema.upgrade()
    store.schema.make_views(VIEWS)
    writer.execute("BEGIN IMMEDIATE")

    store.schema.make_views(VIEWS)

    assert writer.execute("SELECT count(*) FROM state_account").fetchall() == [(0,)]


def test_a_view_whose_type_has_changed_is_made_anew(store: SqlStore, writer: sqlite3.Connection) -> None:
    store.schema.upgrade()
    store.schema.make_views(VIEWS)

    store.schema.make_views([("state_account", "Account", {"balance": "int", "owner": "text"})])

    columns = [row[1] for row in writer.execute("PRAGMA table_info(state_account)")]
    assert columns == ["entity_id", "version", "updated_at", "balance", "owner"]
