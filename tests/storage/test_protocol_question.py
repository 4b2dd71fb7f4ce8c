"""A sender that stores a message and asks for attention in one round trip asks after its commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.message import Mailbox, NewMessage
from entitycelery.storage.sql.message import Messages, _row
from entitycelery.storage.sql.statement import fetch, run
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import before_first
from tests.storage.support import SHARD, message

# Not the one of READ COMMITTED.
COMMIT = "; COMMIT"


def send_while_a_drain_ends(store: SqlStore) -> tuple[bool, list[Mailbox]]:
    """Whether a sender was told that somebody will look; what the drain's last look found, right before the commit."""
    last_look: list[Mailbox] = []
    with store.drain_session(SHARD) as session:
        session.attend()

        def end() -> None:
            session.forsake()
            last_look.extend(session.claim(10))

        with before_first(store, "client", COMMIT, end):
            is_attended = store.append_and_ask(message("a"), nonce="n")
    return is_attended, last_look


def test_a_sender_that_a_drain_overlooked_is_told_to_ring(postgres: SqlStore) -> None:
    assert send_while_a_drain_ends(postgres) == (False, [])


def test_a_sender_that_asked_before_its_commit_would_strand_its_message(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_first(
        self: Messages,
        conn: Connection,
        sent: NewMessage,
        nonce: str,
        question: tuple[str, Mapping[str, Any]],
        **_how: bool,
    ) -> bool:
        run(conn, self._dialect.begin)
        rows = self._dialect.rows([_row(sent)])
        fetch(conn, self._insert_certainly, {"rows": rows, "nonce": nonce, "shards": self._hashing.number})
        [(is_attended,)] = fetch(conn, *question)
        run(conn, COMMIT)
        return bool(is_attended)

    monkeypatch.setattr(Messages, "append_certainly", ask_first)

    assert send_while_a_drain_ends(postgres) == (True, [])


def test_the_last_look_sees_the_message_of_a_sender_that_was_told_so(durable: SqlStore) -> None:
    with durable.drain_session(SHARD) as session:
        session.attend()
        assert durable.append_and_ask(message("a"), nonce="n")

        session.forsake()

        assert len(session.claim(10)) == 1
