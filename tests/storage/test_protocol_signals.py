"""Who completes a signal: the one whose statement has the row first, a time-out by the clock, an early one by its id.

Each body also runs with one rule broken, and must then find a signal that goes on twice, or never, or a deadlock.
"""

from __future__ import annotations

import msgspec
import pytest

from entitycelery.address import keyed_message_id
from entitycelery.message import NewMessage
from entitycelery.signals import SIGNAL, SignalOutcome
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Party, before_first, rewrite
from tests.storage.support import CLUSTER, SHARD, address, append, change, commit_of, ended, message, query

COMPLETED, EARLY, OVER = SignalOutcome.COMPLETED, SignalOutcome.EARLY, SignalOutcome.OVER
_ARGS = '{"name":"a","number":0}'


def row(entity_id: str = "a", **options: object) -> NewMessage:
    """The row of the signal `a` of an entity, which waits."""
    message_id = keyed_message_id(CLUSTER, address(entity_id), SIGNAL, "0 a")
    return message(entity_id, _ARGS, operation=SIGNAL, id=message_id, keyed=True, delay_s=60.0, **options)


def completion(entity_id: str = "a", value: str = "1") -> NewMessage:
    """The same row, completed."""
    outcome = f'{{"status":"succeeded","value":{value}}}'
    args = f'{{"name":"a","number":0,"outcome":{outcome}}}'
    return msgspec.structs.replace(row(entity_id), args=args, delay_s=None, completes=outcome)


def complete(store: SqlStore, value: str = "1", entity_id: str = "a") -> SignalOutcome:
    return store.complete(completion(entity_id, value), nonce=f"nonce {entity_id} {value}")


def due_in(store: SqlStore, seconds: float) -> None:
    change(store, f"UPDATE {{message}} SET due_at = {store.dialect.after(str(seconds))}")  # noqa: S608 - constants


def rows(store: SqlStore) -> list[tuple[object, ...]]:
    return query(store, "SELECT id FROM {message}")


# A completion and a time-out


def test_a_turn_that_found_the_time_out_loses_against_a_completion(store: SqlStore) -> None:
    assert completed_under_a_turn(store) == (COMPLETED, 1)


def test_a_completion_that_leaves_no_trace_in_rev_would_go_on_beside_the_time_out(store: SqlStore) -> None:
    rewrite(store, "rev = rev + 1, nonce", "nonce")

    assert completed_under_a_turn(store) == (COMPLETED, 0)


def completed_under_a_turn(store: SqlStore) -> tuple[SignalOutcome, int]:
    """What a completion comes to while the turn of the time-out runs, and how many rows are left by that turn.

    The clock that said so was stepped back then: else it would have told whoever completes.
    """
    append(store, row())
    due_in(store, -1.0)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        due_in(store, 60.0)
        outcome = complete(store)
        session.commit([commit_of(mailbox, ended(mailbox.mail[0]))], last=True)
    return outcome, len(rows(store))


# A completion and an expectation


def test_of_an_expectation_and_an_early_completion_either_finds_the_other(postgres: SqlStore) -> None:
    assert expected_meanwhile(postgres) == COMPLETED
    [(outcome,)] = query(postgres, "SELECT CAST(args -> 'outcome' AS text) FROM {message}")
    assert msgspec.json.decode(str(outcome)) == {"status": "succeeded", "value": 1}


def test_a_completion_that_looks_before_it_stores_its_row_would_leave_the_signal_waiting(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_first(self: SqlStore, message: NewMessage, *, nonce: str) -> SignalOutcome:
        with self.engines.use("completing a signal") as conn:
            if self._signals.complete(conn, [message], nonce):
                return COMPLETED
            self._messages.append(conn, [message], nonce)
            return EARLY

    monkeypatch.setattr(SqlStore, "complete", look_first)

    assert expected_meanwhile(postgres) == EARLY
    assert query(postgres, "SELECT args -> 'outcome' FROM {message}") == [(None,)]


def expected_meanwhile(store: SqlStore) -> SignalOutcome:
    """What a completion comes to that finds nothing, and stores its row when an expectation has stored it."""
    insert = store._messages._insert
    outcomes: list[SignalOutcome] = []
    with before_first(store, "client", insert, lambda: Party(lambda: append(store, row())).join()):
        outcomes.append(complete(store))
    return outcomes[0]


def test_a_completion_of_what_was_over_stores_nothing(store: SqlStore) -> None:
    append(store, row())
    complete(store)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, ended(mailbox.mail[0]))], last=True)

    assert complete(store, "2") == OVER
    assert rows(store) == []


def test_the_signals_that_turns_complete_are_locked_with_their_messages_in_one_order(postgres: SqlStore) -> None:
    append(postgres, *(row(name) for name in "abcdef"), message("x"))
    with postgres.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        outgoing = [completion(name) for name in "abcdef"]
        locked: list[list[str]] = []
        check = Commits.check

        def watched(self: Commits, conn: object, commits: object, others: object = ()) -> object:
            locked.append(list(others))  # type: ignore[call-overload]
            return check(self, conn, commits, others)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Commits, "check", watched)
            session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=outgoing))], last=True)

    assert {message.id for message in outgoing} <= set(locked[0])
    assert len(query(postgres, "SELECT 1 FROM {message} WHERE rev = 1")) == 6
