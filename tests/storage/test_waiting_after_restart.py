"""Whoever waits for a reply after the database has restarted finds a connection that works."""

from __future__ import annotations

import psycopg2

from tests.storage.support import make_store


def test_a_waiter_whose_pooled_connection_is_gone_listens_on_a_new_one(postgres_url: str) -> None:
    store = make_store(postgres_url)
    store.schema.upgrade()
    with store.waiter() as waiter:
        before = waiter.channel
    _end_all_sessions(postgres_url)

    with store.waiter() as waiter:
        channel = waiter.channel
        _notify(postgres_url, str(channel), "an id")
        is_told = waiter.wait(10.0)
    store.close()

    assert channel != before
    assert is_told


def _end_all_sessions(url: str) -> None:
    connection = psycopg2.connect(url)
    connection.cursor().execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    connection.close()


def _notify(url: str, channel: str, payload: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute("SELECT pg_notify(%s, %s)", (channel, payload))
    connection.close()
