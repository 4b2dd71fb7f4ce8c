"""Claims and attention on PostgreSQL are advisory locks of a session, with their traps.

Each body also runs with one rule broken, and must then find stranded or doubled claims, or mail that is done already.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.address import lock_key, lock_space
from entitycelery.message import Mailbox
from entitycelery.storage.sql.dialects.advisory import AdvisoryLocks
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.statement import fetch, run, transaction
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import before_first, explore
from tests.storage.support import (
    CLUSTER,
    SHARD,
    Program,
    address,
    append,
    claimed_ids,
    commit_of,
    handle_all,
    message,
    query,
)
from tests.waiting import eventually

# A server's advisory locks are listed for all of its databases.
ADVISORY_LOCKS = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
END_CLAIMING_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND objsubid = 1
"""


def locks_of(session: SqlDrainSession) -> int:
    """How many claim locks the session of a drain holds."""
    held = f"{ADVISORY_LOCKS} AND objsubid = 1 AND pid = pg_backend_pid()"
    return int(fetch(session._conn, held)[0][0])


# A lock taken twice must be released twice


def claim_twice(store: SqlStore) -> list[Mailbox]:
    """A drain claims an entity, claims again, and gives back what it has; what another drain gets then."""
    append(store, message("a"))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        mailboxes = first.claim(10)
        append(store, message("a"))
        first.claim(10)
        first.keep_only([], mailboxes)

        return second.claim(10)


def test_an_entity_claimed_twice_is_free_after_one_release(postgres: SqlStore) -> None:
    assert len(claim_twice(postgres)) == 1


def test_a_lock_taken_again_by_its_holder_would_stay_behind(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(dict[int, Any]):
        def __iter__(self) -> Any:
            return iter(())

        def keys(self) -> Any:
            return {}.keys()

    def begin(self: SqlDrainSession, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self._held = Forgetful()

    made = SqlDrainSession.__init__
    monkeypatch.setattr(SqlDrainSession, "__init__", begin)

    assert claim_twice(postgres) == []


def release_with_a_shared_key(store: SqlStore) -> list[Mailbox]:
    """Two entities share a lock; one is given back while the other runs on; what another drain gets."""
    append(store, message("a", lock_key=4711), message("b", lock_key=4711))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        [given, kept] = first.claim(10)
        first.keep_only(claimed_ids([kept]), [given])

        return second.claim(10)


def test_a_shared_lock_is_held_until_its_last_entity_is_released(postgres: SqlStore) -> None:
    assert release_with_a_shared_key(postgres) == []


def test_a_shared_lock_released_with_its_first_entity_would_let_a_second_writer_in(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def release(self: SqlDrainSession, conn: Connection, mailboxes: Collection[Mailbox]) -> None:
        self._locks.release(conn, self._token, {mailbox.lock_key for mailbox in mailboxes})

    monkeypatch.setattr(SqlDrainSession, "_release", release)

    assert release_with_a_shared_key(postgres) != []


# What is taken, is returned


def take_some_of_many(store: SqlStore) -> tuple[int, int]:
    """A drain claims a few of many entities; how many it got, and how many locks it holds."""
    append(store, *(message(f"e{n}") for n in range(100)))
    with store.drain_session(SHARD) as session:
        return len(session.claim(5)), locks_of(session)


def test_a_limited_claim_holds_no_lock_that_it_does_not_return(postgres: SqlStore) -> None:
    assert take_some_of_many(postgres) == (5, 5)


def test_a_try_lock_beside_a_condition_would_take_more_than_it_returns(postgres: SqlStore) -> None:
    def claim(conn: Connection, token: str, keys: Collection[int]) -> set[int]:
        statement = """
            SELECT DISTINCT lock_key FROM {message} WHERE pg_try_advisory_lock(lock_key) AND lock_key = ANY(:keys)
        """
        return {row[0] for row in fetch(conn, postgres.dialect.sql(statement), {"keys": list(keys)})}

    postgres._locks.claim = claim  # type: ignore[method-assign]

    taken, held = take_some_of_many(postgres)

    assert taken == 5
    assert held > taken


# Read after the lock


def overtaken_claim(store: SqlStore) -> tuple[list[str], list[int]]:
    """A drain has seen mail; before it locks, another works that off, sends new mail and lets go.

    Returns:
        The ids that the drain then claims, and the versions of the states it reads.
    """
    append(store, message("a"))
    new = message("a")

    def overtake() -> None:
        handle_all(store)
        append(store, new)

    take = store._locks._try  # type: ignore[attr-defined]
    with store.drain_session(SHARD) as session:
        with before_first(store, "drain", take, overtake):
            mailboxes = session.claim(10)
        if not mailboxes:
            mailboxes = session.claim(10)
        ids = ["new" if found == new.id else "done" for found in claimed_ids(mailboxes)]
        return ids, [mailbox.stored.version for mailbox in mailboxes]


def test_mail_and_state_are_read_after_the_lock(postgres: SqlStore) -> None:
    assert overtaken_claim(postgres) == (["new"], [1])


def test_mail_read_in_the_claims_own_snapshot_would_be_done_already(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def one_snapshot(conn: Connection) -> Iterator[None]:
        with transaction(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ"):
            run(conn, "SELECT 1")
            yield

    monkeypatch.setattr(postgres.dialect, "claim_scope", one_snapshot)

    assert overtaken_claim(postgres) == (["done"], [0])


# Two kinds of locks that never meet


def attend_and_claim(store: SqlStore) -> list[Mailbox]:
    """One drain attends a shard; another claims an entity whose key has the same bits; what it gets."""
    space = lock_space(CLUSTER, f"attention {SHARD.group}")
    append(store, message("a", lock_key=(space << 32) | SHARD.number))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        first.attend()

        return second.claim(10)


def test_attention_for_a_shard_never_looks_like_a_claim(postgres: SqlStore) -> None:
    assert len(attend_and_claim(postgres)) == 1


def test_claims_of_two_integers_would_meet_the_attention(postgres: SqlStore) -> None:
    def claim(conn: Connection, token: str, keys: Collection[int]) -> set[int]:
        statement = """
            SELECT k, pg_try_advisory_lock(CAST(k >> 32 AS int), CAST(k << 32 >> 32 AS int))
            FROM unnest(CAST(:keys AS bigint[])) k
        """
        rows = fetch(conn, postgres.dialect.sql(statement), {"keys": list(keys)})
        return {key for key, granted in rows if granted}

    postgres._locks.claim = claim  # type: ignore[method-assign]

    assert attend_and_claim(postgres) == []


def test_many_drains_attend_one_shard_at_once(durable: SqlStore) -> None:
    with durable.drain_session(SHARD) as first, durable.drain_session(SHARD) as second:
        first.attend()
        second.attend()
        first.forsake()
        assert durable.attended([SHARD]) == {SHARD}

        second.forsake()

        assert durable.attended([SHARD]) == set()


def test_asking_for_attention_leaves_no_lock_behind(postgres: SqlStore) -> None:
    assert postgres.attended([SHARD]) == set()

    with postgres.drain_session(SHARD) as session:
        session.attend()
        assert postgres.attended([SHARD]) == {SHARD}
    assert query(postgres, ADVISORY_LOCKS) == [(0,)]


def test_a_look_at_a_status_keeps_no_drain_from_its_mail(postgres: SqlStore) -> None:
    append(postgres, message("a", lock_key=lock_key(CLUSTER, address("a"))))

    def claim(_: int) -> int:
        with postgres.drain_session(SHARD) as session:
            return len(session.claim(10))

    claimed: list[int] = []
    explore(
        postgres,
        "client",
        lambda _: postgres.mailbox_status(address("a"), SHARD),
        claim,
        lambda _n, _status, got: claimed.append(got),
    )

    assert claimed
    assert set(claimed) == {1}


# Sessions that end, badly or not at all


def next_on_the_same_connection(store: SqlStore) -> list[Mailbox]:
    """A drain ends with a claim; what another drain gets while the pool keeps the first one's connection."""
    append(store, message("a"))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        first.claim(10)
        first.end()

        return second.claim(10)


def test_the_end_of_a_session_releases_its_claims_though_the_pool_keeps_its_connection(postgres: SqlStore) -> None:
    assert len(next_on_the_same_connection(postgres)) == 1


def test_claims_would_outlive_their_session_if_it_did_not_release_them(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The pool's own reset rolls back, which releases no session lock.
    monkeypatch.setattr(AdvisoryLocks, "release_all", lambda self, conn, token: run(conn, "ROLLBACK"))

    assert next_on_the_same_connection(postgres) == []


FREEZING = """
import sys
from tests.storage.support import SHARD, commit_of, opened
with opened(sys.argv[1]) as store, store.drain_session(SHARD) as session:
    mailboxes = session.claim(100)
    print("READY", flush=True)
    sys.stdin.readline()
    try:
        print(session.commit([commit_of(box) for box in mailboxes], last=True), flush=True)
    except Exception as exc:
        print(type(exc).__name__, flush=True)
"""


def test_a_frozen_drain_keeps_its_claims_until_its_session_is_ended_and_then_commits_nothing(
    postgres: SqlStore,
) -> None:
    append(postgres, message("a"))
    program = Program(FREEZING, postgres.url.render_as_string(hide_password=False))
    assert program.line() == "READY"
    os.kill(program.pid, signal.SIGSTOP)
    try:
        assert handle_all(postgres) == []

        query(postgres, END_CLAIMING_SESSIONS)
        assert len(eventually(lambda: handle_all(postgres))) == 1

        os.kill(program.pid, signal.SIGCONT)
        assert program.finish_and_read() == "StoreUnavailable"
    finally:
        program.kill()
    assert postgres.state(address("a")).version == 1


def test_a_stale_drain_that_nobody_ended_loses_its_commit(durable: SqlStore) -> None:
    append(durable, message("a"))
    program = Program(FREEZING, durable.url.render_as_string(hide_password=False))
    assert program.line() == "READY"
    try:
        durable._locks.claim = lambda conn, token, keys: set(keys)  # type: ignore[method-assign]
        with durable.drain_session(SHARD) as session:
            while not (mailboxes := session.claim(10)):
                pass
            session.commit([commit_of(box) for box in mailboxes], last=True)

        assert "lost=frozenset({Address(type='Account', id='a')})" in program.finish_and_read()
    finally:
        program.kill()
    assert durable.state(address("a")).version == 1
