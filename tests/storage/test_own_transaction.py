"""Turns with a transaction of their own: the user's SQL and the turn commit together or not at all."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from entitycelery.exceptions import ConfigurationError
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    CONFLICT,
    SHARD,
    address,
    append,
    change,
    commit_of,
    ended,
    message,
    query,
)


@pytest.fixture
def orders(durable: SqlStore) -> SqlStore:
    """A store beside which the user has a table."""
    change(durable, "CREATE TABLE orders (n integer)")
    return durable


def rows(store: SqlStore) -> list[int]:
    return [row[0] for row in query(store, "SELECT n FROM orders ORDER BY n")]


def test_the_users_sql_commits_with_the_turn(orders: SqlStore) -> None:
    append(orders, message("a"))
    with orders.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        conn.execute(text("INSERT INTO orders VALUES (1)"))
        if orders.dialect.name == "postgresql":
            assert rows(orders) == []

        result = session.commit_turn(commit_of(mailbox, state='{"n": 1}'))

    assert (result.lost, result.refused) == (frozenset(), {})
    assert rows(orders) == [1]
    assert orders.state(address("a")).version == 1


def test_the_users_sql_vanishes_with_the_turn(orders: SqlStore) -> None:
    append(orders, message("a"))
    with orders.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        conn.execute(text("INSERT INTO orders VALUES (1)"))

        session.rollback_turn()
        assert rows(orders) == []
        assert session.commit([commit_of(mailbox)], last=True).lost == frozenset()

    assert orders.state(address("a")).version == 1


def test_a_session_that_ends_undoes_an_open_turn(orders: SqlStore) -> None:
    append(orders, message("a"))
    with orders.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.open_turn(mailbox, mailbox.mail[0]).execute(text("INSERT INTO orders VALUES (1)"))

    assert rows(orders) == []
    assert orders.state(address("a")).version == 0


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_the_user_cannot_end_the_transaction(orders: SqlStore, verb: str) -> None:
    append(orders, message("a"))
    with orders.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        conn.execute(text("INSERT INTO orders VALUES (1)"))

        with pytest.raises(ConfigurationError, match=r"self\.turn\.connection"):
            getattr(conn, verb)()

        session.rollback_turn()
    assert rows(orders) == []


@pytest.mark.parametrize(
    "meanwhile",
    [
        "DELETE FROM {message}",
        "UPDATE {message} SET rev = rev + 1",
        "INSERT INTO {state} (type, entity_id, version, state_version, state, updated_at) "
        "VALUES ('Account', 'a', 1, 1, '{}', {now})",
    ],
    ids=["gone", "changed", "overtaken"],
)
def test_a_turn_that_has_lost_already_is_not_opened(durable: SqlStore, meanwhile: str) -> None:
    append(durable, message("a"))
    with durable.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        change(durable, meanwhile.replace("{now}", durable.dialect.now).replace("'{}'", "'[]'"))

        assert session.open_turn(mailbox, mailbox.mail[0]) is None


def test_a_refused_message_undoes_the_users_sql(orders: SqlStore) -> None:
    append(orders, message("target", '{"n":1}', key="k"))
    append(orders, message("a"))
    conflicting = message("target", '{"n":2}', key="k")
    with orders.drain_session(SHARD) as session:
        [mailbox] = [m for m in session.claim(10) if m.address.id == "a"]
        session.open_turn(mailbox, mailbox.mail[0]).execute(text("INSERT INTO orders VALUES (1)"))

        result = session.commit_turn(commit_of(mailbox, ended(mailbox.mail[0], outgoing=[conflicting])))

    assert result.refused == {conflicting: CONFLICT}
    assert rows(orders) == []
    assert orders.state(address("a")).version == 0


def test_a_deferred_constraint_speaks_up_before_the_reply(durable: SqlStore) -> None:
    change(durable, "CREATE TABLE parent (n integer PRIMARY KEY)")
    change(durable, "CREATE TABLE line (of_order integer REFERENCES parent (n) DEFERRABLE INITIALLY DEFERRED)")
    append(durable, message("a"))
    with durable.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        conn.execute(text("INSERT INTO line (of_order) VALUES (4711)"))

        result = session.commit_turn(commit_of(mailbox))

        assert result.error is not None
        assert "foreign key" in str(result.error).lower()
        assert durable.replies([mailbox.mail[0].id]) == {}
        # The session is as good as before: the turn's failure can be committed.
        assert session.commit([commit_of(mailbox)], last=True).lost == frozenset()

    assert query(durable, "SELECT count(*) FROM line") == [(0,)]


def test_a_transaction_that_the_user_broke_fails_the_turn(postgres: SqlStore) -> None:
    append(postgres, message("a"))
    with postgres.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        with pytest.raises(Exception, match="division by zero"):
            conn.execute(text("SELECT 1 / 0"))

        result = session.commit_turn(commit_of(mailbox))

        assert result.error is not None
        assert session.commit([commit_of(mailbox)], last=True).lost == frozenset()


def test_a_turn_in_the_memory_store_has_a_transaction_too(store: SqlStore) -> None:
    change(store, "CREATE TABLE orders (n integer)")
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.open_turn(mailbox, mailbox.mail[0]).execute(text("INSERT INTO orders VALUES (1)"))
        session.commit_turn(commit_of(mailbox))

    assert rows(store) == [1]
    assert store.state(address("a")).version == 1


SLOW = {
    "postgresql": "SELECT pg_sleep(1000)",
    "sqlite": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
}


def test_a_turn_whose_statement_hangs_can_be_undone_from_another_thread(orders: SqlStore) -> None:
    append(orders, message("a"))
    raised: list[Exception] = []
    with orders.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        conn.execute(text("INSERT INTO orders VALUES (1)"))
        begun = threading.Event()

        def hang() -> None:
            begun.set()
            try:
                conn.execute(text(SLOW[orders.dialect.name]))
            except Exception as exc:  # noqa: BLE001 - whatever the interrupted statement says
                raised.append(exc)

        thread = threading.Thread(target=hang)
        thread.start()
        begun.wait()
        session.rollback_turn(interrupt=True)
        thread.join(30)

        assert not thread.is_alive()
        assert session.commit([commit_of(mailbox)], last=True).lost == frozenset()
        with pytest.raises(SQLAlchemyError):
            conn.execute(text("INSERT INTO orders VALUES (2)"))

    assert raised
    assert rows(orders) == []
