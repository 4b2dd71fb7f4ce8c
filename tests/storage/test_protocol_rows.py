"""Claims and attention as rows that expire, as they are behind a transaction pooler.

Each body also runs with one rule broken, and must then find a second writer, claims that live too long, or a deadlock.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from sqlalchemy.exc import OperationalError

from entitycelery.storage.sql.dialects.expiring import ExpiringRowLocks
from entitycelery.storage.sql.dialects.pooled import PooledPostgreSQL
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.statement import Statement, run, transaction
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Party
from tests.storage.support import (
    LEASE_S,
    SHARD,
    Program,
    address,
    append,
    await_unclaimed,
    change,
    commit_of,
    handle,
    handle_all,
    holder,
    message,
    opened,
    query,
)
from tests.waiting import eventually

SHORT_S = 0.3


@pytest.fixture
def rows(rows_url: str) -> Iterator[SqlStore]:
    """A store whose locks are rows."""
    with opened(rows_url) as store:
        yield store


@pytest.fixture
def hasty(rows_url: str) -> Iterator[SqlStore]:
    """The same, and what nobody renews expires soon."""
    with opened(rows_url, lease_s=SHORT_S) as store:
        yield store


def locks_of(store: SqlStore) -> ExpiringRowLocks:
    assert isinstance(store._locks, ExpiringRowLocks)
    return store._locks


def reworded(store: SqlStore, statement: str, old: str, new: str) -> None:
    """Have one statement of the locks of this store say something else."""
    locks = locks_of(store)
    text = getattr(locks, statement)
    assert old in text
    setattr(locks, statement, Statement(text.replace(old, new)))


def expire(store: SqlStore) -> None:
    """Have everything expire."""
    change(store, "UPDATE {lock} SET expires_at = clock_timestamp() - interval '1 second'")


# One holder


def claims_of_two(store: SqlStore) -> int:
    """How many of two drains get the only entity with mail, of which the second looked before the first committed."""
    sent = message("a")
    append(store, sent)
    locks = locks_of(store)
    with store.engines.of("drain").connect() as first, store.engines.of("drain").connect() as second:
        with transaction(first, store.dialect.begin):
            granted = len(locks.claim(first, "first", [sent.lock_key]))
            other = Party(lambda: locks.claim(second, "second", [sent.lock_key]))
            other.until_done_or_blocked(store)
        granted += len(other.join())
        locks.release_all(first, "first")
        locks.release_all(second, "second")
    return granted


def test_of_two_drains_that_claim_at_once_one_is_granted(rows: SqlStore) -> None:
    assert claims_of_two(rows) == 1


def test_claims_that_are_only_looked_for_would_be_granted_twice(rows: SqlStore) -> None:
    change(rows, "DROP INDEX {lock_claim}")
    text = locks_of(rows)._claim
    locks_of(rows)._claim = Statement(re.sub(r"ON CONFLICT.*(?=RETURNING)", "", text))

    assert claims_of_two(rows) == 2


def claim_of_the_living(store: SqlStore) -> list[str]:
    """What another drain handles of an entity that is claimed."""
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        assert len(session.claim(10)) == 1
        return handle_all(store)


def test_a_claim_that_has_not_expired_is_its_holders(rows: SqlStore) -> None:
    assert claim_of_the_living(rows) == []


def test_claims_taken_from_whoever_has_them_would_have_two_holders(rows: SqlStore) -> None:
    reworded(rows, "_claim", "l.expires_at >= clock_timestamp()", "false")
    reworded(rows, "_claim", "held.expires_at < clock_timestamp()", "true")

    assert len(claim_of_the_living(rows)) == 1


# Renewed while the drain lives, and only then


def outlast_the_lease(store: SqlStore) -> list[str]:
    """What another drain handles of an entity that has been claimed for longer than a lease."""
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        assert len(session.claim(10)) == 1
        [(begun,)] = query(store, "SELECT clock_timestamp()")
        elapsed = "SELECT clock_timestamp() - CAST(:begun AS timestamptz) > :s * interval '1 second'"
        eventually(lambda: query(store, elapsed, begun=begun, s=3 * SHORT_S)[0][0])
        return handle_all(store)


def test_a_claim_lasts_as_long_as_its_drain(hasty: SqlStore) -> None:
    assert outlast_the_lease(hasty) == []


def test_claims_that_nobody_renews_would_be_lost_by_long_turns(
    hasty: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks_of(hasty)._renewal, "_renew", lambda tokens: None)

    assert len(outlast_the_lease(hasty)) == 1


FORKING = """
import os, sys, time
from tests.storage.support import SHARD, opened
with opened(sys.argv[1], lease_s=0.3) as store:
    with store.drain_session(SHARD) as session:
        session.attend()
        pid = os.fork()
        if not pid:
            with store.drain_session(SHARD) as mine:
                print("READY", len(mine.claim(10)), flush=True)
                sys.stdin.readline()
            os._exit(0)
        os.waitpid(pid, 0)
"""


def test_a_forked_process_renews_its_own_claims(rows: SqlStore) -> None:
    append(rows, message("a"))
    program = Program(FORKING, rows.url.render_as_string(hide_password=False))
    try:
        assert program.line() == "READY 1"
        [(first,)] = query(rows, "SELECT expires_at FROM {lock} WHERE kind = 'claim'")

        renewed = (
            "SELECT expires_at > CAST(:first AS timestamptz) + interval '1 second' FROM {lock} WHERE kind = 'claim'"
        )
        assert eventually(lambda: query(rows, renewed, first=first) == [(True,)])

        assert handle_all(rows) == []
    finally:
        program.kill()


def renew_what_has_expired(store: SqlStore) -> bool:
    """Whether a claim that has expired lives again after a renewal by its own drain."""
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        session.claim(10)
        expire(store)
        locks_of(store)._renew([session._token])
        return store.mailbox_status(address("a"), SHARD).claimed


def test_what_has_expired_is_not_renewed(rows: SqlStore) -> None:
    assert renew_what_has_expired(rows) is False


def test_a_renewal_that_does_not_look_would_bring_back_what_has_expired(rows: SqlStore) -> None:
    reworded(rows, "_extend", ">= clock_timestamp()", "IS NOT NULL")

    assert renew_what_has_expired(rows) is True


FREEZING = """
import sys
from tests.storage.support import SHARD, commit_of, opened
with opened(sys.argv[1]) as store, store.drain_session(SHARD) as session:
    mailboxes = session.claim(100)
    print("READY", flush=True)
    sys.stdin.readline()
    print(session.commit([commit_of(box) for box in mailboxes], last=True), flush=True)
"""


def test_a_frozen_drain_loses_its_claims_and_when_it_wakes_up_its_commit(rows: SqlStore) -> None:
    sent = message("a")
    append(rows, sent)
    program = Program(FREEZING, rows.url.render_as_string(hide_password=False))
    assert program.line() == "READY"
    os.kill(program.pid, signal.SIGSTOP)
    try:
        await_unclaimed(rows, sent)
        assert handle_all(rows) == [sent.id]

        os.kill(program.pid, signal.SIGCONT)
        assert "lost=frozenset({Address(type='Account', id='a')})" in program.finish_and_read()
    finally:
        program.kill()
    assert rows.state(address("a")).version == 1


def test_attention_of_the_dead_expires(rows: SqlStore) -> None:
    with holder(rows.url.render_as_string(hide_password=False)) as program:
        assert rows.attended([SHARD]) == {SHARD}
        program.kill()

        eventually(lambda: rows.attended([SHARD]) == set(), timeout_s=3 * LEASE_S)


def test_what_has_expired_is_removed_and_nothing_else(rows: SqlStore) -> None:
    append(rows, message("a"), message("b"))
    with rows.drain_session(SHARD) as dead, rows.drain_session(SHARD) as living:
        assert len(dead.claim(1)) == 1
        expire(rows)
        living.attend()

        rows.remove_remains(60)

        assert query(rows, "SELECT kind FROM {lock}") == [("attention",)]


def test_a_drain_that_was_found_silent_loses_its_claims(rows: SqlStore) -> None:
    sent = message("a")
    append(rows, sent)
    with rows.drain_session(SHARD) as session:
        session.claim(10)
        change(rows, "UPDATE {in_flight} SET noted_at = noted_at - interval '1 minute'")

        assert len(rows.remove_remains(30)) == 1

        assert handle_all(rows) == [sent.id]


def release_while_renewing(store: SqlStore) -> list[tuple[Any, ...]]:
    """A drain releases a claim that its process is renewing just now; what is left of it."""
    locks = locks_of(store)
    with store.engines.of("client").connect() as renewing, store.engines.of("drain").connect() as releasing:
        locks.claim(releasing, "drain", [1])
        with transaction(renewing, store.dialect.begin):
            run(renewing, locks._extend, {"tokens": ["drain"], "lease_s": 60})
            other = Party(lambda: locks.release(releasing, "drain", [1]))
            other.until_done_or_blocked(store)
        other.join()
        left = query(store, "SELECT key FROM {lock}")
        locks.release_all(releasing, "drain")
    return left


def test_a_claim_that_is_renewed_meanwhile_is_released(rows: SqlStore) -> None:
    assert release_while_renewing(rows) == []


def test_a_release_that_remembers_where_a_row_was_would_leave_it_to_be_renewed(rows: SqlStore) -> None:
    locks_of(rows)._release = rows.dialect.sql(
        "DELETE FROM {lock} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {lock} WHERE kind = 'claim' "
        "AND key = ANY(:keys) AND token = :token ORDER BY key FOR UPDATE))"
    )

    assert release_while_renewing(rows) == [("1",)]


# In order


def cross(store: SqlStore) -> None:
    """One drain takes over a claim that expired, then a second one, while another is to take over both."""
    locks = locks_of(store)
    with store.engines.of("drain").connect() as first, store.engines.of("drain").connect() as second:
        locks.claim(first, "dead", [1, 2])
        expire(store)
        try:
            with transaction(first, store.dialect.begin):
                locks.claim(first, "first", [1])
                other = Party(lambda: locks.claim(second, "second", [2, 1]))
                other.until_done_or_blocked(store)
                assert locks.claim(first, "first", [2]) == {2}
            assert other.join() == set()
        finally:
            for token in ("dead", "first", "second"):
                locks.release_all(first, token)


def test_claims_that_meet_do_not_deadlock(rows: SqlStore) -> None:
    cross(rows)


def test_claims_in_any_order_would_deadlock(rows: SqlStore) -> None:
    reworded(rows, "_claim", 'ORDER BY k COLLATE "C"', "")

    with pytest.raises(OperationalError, match="deadlock detected"):
        cross(rows)


# Asking


def end_between(store: SqlStore, ask: Callable[[Any], Any]) -> tuple[bool, int]:
    """A drain lets go of its attention and looks, right before a sender's commit; whether the sender is told that
    somebody will look, and how much mail that look found."""
    with store.drain_session(SHARD) as session, store.engines.of("client").connect() as sender:
        session.attend()
        with transaction(sender, store.dialect.begin):
            store._messages.append(sender, [message("a")], "n")
            told_early = bool(ask(sender))
            session.forsake()
            found = len(handle(session))
        return told_early or bool(ask(sender)), found


def attended_by(store: SqlStore) -> Callable[[Any], Any]:
    return lambda conn: locks_of(store).attended(conn, [SHARD])


def test_a_sender_that_asks_after_its_commit_is_told_the_truth(rows: SqlStore) -> None:
    answers = iter([lambda conn: False, attended_by(rows)])

    assert end_between(rows, lambda conn: next(answers)(conn)) == (False, 0)


def test_a_sender_that_asks_for_a_row_before_its_commit_would_strand_its_message(rows: SqlStore) -> None:
    assert end_between(rows, attended_by(rows)) == (True, 0)


# Transactions


@contextmanager
def held_row(url: str, message_id: str) -> Iterator[None]:
    """Somebody's transaction that holds the row of a message."""
    connection = psycopg2.connect(url)
    connection.cursor().execute("SELECT 1 FROM entity_conformance.message WHERE id = %s FOR UPDATE", (message_id,))
    try:
        yield
    finally:
        connection.close()


def test_a_commit_waits_for_a_lock_for_a_second_at_most(rows: SqlStore, rows_url: str) -> None:
    sent = message("a")
    append(rows, sent)

    with rows.drain_session(SHARD) as session, held_row(rows_url, sent.id):
        result = session.commit([commit_of(box) for box in session.claim(10)], last=True)

    assert result.lost == {address("a")}


def test_a_commit_whose_transaction_sets_no_limit_would_wait_for_as_long_as_the_other_takes(
    rows_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PooledPostgreSQL, "begin", PostgreSQL.begin)
    sent = message("a")
    waiting = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND clock_timestamp() - query_start > interval '1.5 seconds'
    """

    with opened(rows_url) as rows, rows.drain_session(SHARD) as session:
        append(rows, sent)
        mailboxes = session.claim(10)
        with held_row(rows_url, sent.id):
            committing = Party(lambda: session.commit([commit_of(box) for box in mailboxes], last=True))
            assert eventually(lambda: query(rows, waiting) == [(1,)])
            assert not committing.is_done
        committing.join()


def test_a_turns_own_statements_wait_as_long_as_they_want(rows: SqlStore) -> None:
    append(rows, message("a"))
    with rows.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])

        assert conn.exec_driver_sql("SHOW lock_timeout").scalar() == "0"


def test_nothing_is_prepared_and_nothing_set_for_the_session(rows: SqlStore) -> None:
    append(rows, message("a"))
    with rows.drain_session(SHARD) as session:
        handle(session)
        with session._use("looking") as conn:
            cursor: Any = conn.connection.cursor()
            cursor.execute("SELECT count(*) FROM pg_prepared_statements")
            prepared = cursor.fetchone()
            cursor.execute("SELECT name FROM pg_settings WHERE source = 'session' OR source = 'client'")
            chosen = {name for (name,) in cursor.fetchall()}

    assert prepared == (0,)
    assert chosen <= {"application_name", "client_encoding", "DateStyle", "TimeZone"}
