"""Settings of the database server that do harm are named."""

from __future__ import annotations

from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import query


def test_more_locks_than_a_quarter_of_the_servers_are_a_concern(postgres: SqlStore) -> None:
    [(room,)] = query(
        postgres, "SELECT current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int"
    )

    few = postgres.concerns(1, 1)
    many = postgres.concerns(room // 4, 1)

    assert not any("lock" in sentence for sentence in few)
    assert any(f"a quarter of the server's lock table is {room // 4:,}" in sentence for sentence in many)


def test_a_server_that_never_vacuums_is_a_concern(postgres: SqlStore) -> None:
    [(autovacuum,)] = query(postgres, "SELECT current_setting('autovacuum')")

    named = any("autovacuum is off" in sentence for sentence in postgres.concerns(1, 1))

    assert named == (autovacuum == "off")


def test_a_file_has_no_server_to_be_concerned_about(sqlite_store: SqlStore) -> None:
    assert sqlite_store.concerns(1_000, 1_000) == []
