"""A store behind PgBouncer: what it refuses, what would go wrong if it did not, and that rows do without sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from cli.check import look
from entitycelery.app import store_only
from entitycelery.exceptions import ConfigurationError
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.dialects.sessions import are_sessions
from entitycelery.storage.sql.statement import Statement, run
from entitycelery.storage.sql.store import SqlStore
from tests.conftest import url_or_skip
from tests.pgbouncer import PgBouncer
from tests.services import Services
from tests.storage.leases import Host
from tests.storage.support import (
    SHARD,
    STORED,
    address,
    append,
    commit_of,
    handle,
    handle_all,
    make_store,
    message,
    opened,
    query,
)
from tests.waiting import eventually

ROWS = 'entity_lock_mode = "rows"'
Pooler = Callable[..., str]


@pytest.fixture
def pooler(services: Services, postgres_url: str) -> Iterator[Pooler]:
    """Starts poolers of other settings: `pooler(pool_mode="session")` is the database by way of such a one."""
    url_or_skip(services.pgbouncer())
    started: list[PgBouncer] = []

    def start(**settings: object) -> str:
        started.append(PgBouncer(postgres_url, **settings))
        return started[-1].start()

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def pooled(pooled_url: str) -> Iterator[SqlStore]:
    with opened(pooled_url, lock_mode="rows") as store:
        yield store


# Session locks


@pytest.mark.parametrize("robin", [0, 1])
def test_session_locks_are_refused_behind_a_transaction_pooler(postgres: SqlStore, pooler: Pooler, robin: int) -> None:
    url = pooler(ignore_startup_parameters="options", server_round_robin=robin)
    store = make_store(url)
    with contending(store), pytest.raises(ConfigurationError, match=ROWS):
        store.schema.verify()
    store.close()


def test_settings_that_the_pooler_does_not_take_are_a_hint_too(postgres: SqlStore, pooled_url: str) -> None:
    store = make_store(pooled_url)

    with pytest.raises(ConfigurationError, match=ROWS):
        append(store, message("a"))
    store.close()


def test_what_was_prepared_in_anothers_session_is_a_hint_too(postgres: SqlStore, pooler: Pooler) -> None:
    store = make_store(pooler(ignore_startup_parameters="options"))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        first.claim(10)
        with pytest.raises(ConfigurationError, match=ROWS):
            second.claim(10)
    store.close()


@pytest.mark.parametrize("mode", ["advisory", "rows"])
def test_sessions_are_welcome(postgres: SqlStore, pooler: Pooler, mode: str) -> None:
    for url in (
        postgres.url.render_as_string(hide_password=False),
        pooler(pool_mode="session", ignore_startup_parameters="options"),
    ):
        store = make_store(url, lock_mode=mode)
        store.schema.verify()
        store.close()


def test_the_check_of_the_command_line_says_so(postgres: SqlStore, pooler: Pooler) -> None:
    entities = store_only(pooler(ignore_startup_parameters="options"))
    entities.override(cluster=postgres.cluster, shards_per_group=4)

    findings = {finding.name: finding for finding in look(entities)}

    assert not findings["schema"].ok
    assert ROWS in findings["schema"].detail
    entities.close()


@pytest.mark.parametrize(
    ("rounds", "kept"),
    [
        ([{0: 11, 1: 12}, {0: 11, 1: 12}], True),
        ([{0: 11, 1: 11}, {0: 11, 1: 11}], False),
        ([{0: 11, 1: 12}, {0: 12, 1: 11}], False),
        ([{0: 11, 1: 12}, {0: 13, 1: 12}], False),
    ],
)
def test_a_session_is_one_process_of_its_own(rounds: Sequence[Mapping[int, int]], kept: bool) -> None:
    assert are_sessions(rounds) is kept


def claimed_by_two(store: SqlStore) -> list[str]:
    """What another drain handles of an entity that is claimed."""
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        while not session.claim(10):
            pass
        return handle_all(store)


def test_rows_hold_a_claim_behind_a_transaction_pooler(pooled: SqlStore) -> None:
    assert claimed_by_two(pooled) == []


def test_session_locks_behind_a_transaction_pooler_would_hold_nothing(
    postgres: SqlStore, pooler: Pooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is prepared would fail first, by chance sooner or later.
    prepared = PostgreSQL._statement
    monkeypatch.setattr(PostgreSQL, "_statement", lambda self, words: Statement(str(prepared(self, words))))
    store = make_store(pooler(ignore_startup_parameters="options"))

    assert len(claimed_by_two(store)) == 1
    store.close()


# Rows


def test_senders_of_every_kind_and_drains_work_side_by_side(pooled: SqlStore) -> None:
    keys = [f"k{n}" for n in range(30)]
    stored: list[str] = []

    def send(number: int) -> None:
        for n, key in enumerate(keys):
            plain, keyed = message(f"plain{n % 3}"), message("keyed", key=key)
            assert append(pooled, plain) == [STORED]
            if append(pooled, keyed, message(f"many{number}"))[0] is STORED:
                stored.append(keyed.id)
            pooled.append_and_ask(message(f"asked{number}"), nonce=f"{number}-{n}")
            with callers.begin() as conn:
                append(pooled, message("caller"), connection=conn)

    def drain() -> None:
        while not done.is_set():
            with pooled.drain_session(SHARD) as session:
                session.attend()
                handled.extend(handle(session, limit=20))
                session.forsake()
                handled.extend(handle(session, limit=20))

    callers = create_engine(pooled.url)
    handled: list[str] = []
    done = threading.Event()
    senders = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    drains = [threading.Thread(target=drain) for _ in range(3)]
    for thread in (*senders, *drains):
        thread.start()
    for sender in senders:
        sender.join()
    eventually(lambda: not pooled.pending(None, None, 1))
    done.set()
    for thread in drains:
        thread.join()
    callers.dispose()

    # Plain, many, asked and caller's of each sender; each key once.
    assert len(handled) == len(set(handled)) == 3 * 4 * len(keys) + len(keys)
    assert sorted(stored) == sorted(set(stored))
    assert pooled.state(address("keyed")).version <= len(keys)
    assert query(pooled, "SELECT * FROM {lock}") == []


def test_leases_move_behind_a_transaction_pooler(pooled: SqlStore) -> None:
    with (
        Host.opened(pooled, "one", lease_s=0.5) as one,
        Host.opened(pooled, "other", lease_s=30) as other,
    ):
        assert one.take(0, 1) == {0: 1, 1: 1}
        assert other.take(0, 1) == {}
        assert one.confirm() == {0, 1}

        one.give(0)
        assert other.take(0) == {0: 2}

        # Nobody renews the other one.
        assert eventually(lambda: other.take(1)) == {1: 2}
        assert one.confirm() == set()
        assert other.confirm() == {0, 1}
        assert other.holders() == {0: other.instance, 1: other.instance}


def test_a_turn_that_took_too_long_is_undone_and_nobody_elses_transaction(pooled: SqlStore) -> None:
    append(pooled, message("a"))
    users = create_engine(pooled.url)
    with pooled.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        conn.execute(text("CREATE TABLE left_by_the_turn (id int)"))
        with users.begin() as other:
            other.execute(text("SELECT 1"))

            session.rollback_turn(interrupt=True)

            assert other.execute(text("SELECT to_regclass('left_by_the_turn')")).scalar() is None
        assert len(session.commit([commit_of(mailbox)], last=True).lost) == 0
    users.dispose()


def interrupt_too_late(store: SqlStore) -> bool:
    """Whether somebody else's transaction outlives the undoing of a turn's that is over already."""
    append(store, message("a"))
    users = create_engine(store.url)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        conn = session.open_turn(mailbox, mailbox.mail[0])
        # Its process of the server is free for others, as it is the moment that a transaction ends.
        conn.connection.cursor().execute("ROLLBACK")
        other = users.connect()
        other.execute(text("SELECT 1"))

        session.rollback_turn(interrupt=True)

        try:
            other.execute(text("SELECT 1"))
        except OperationalError:
            return False
        finally:
            other.close()
            users.dispose()
    return True


def test_a_transaction_that_is_over_is_not_undone_in_anothers(pooled: SqlStore) -> None:
    assert interrupt_too_late(pooled)


def test_whoever_has_the_process_now_would_be_undone_if_its_transaction_were_not_compared(
    pooled: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: PostgreSQL, conn: Connection, own: Connection) -> None:
        run(own, "SELECT pg_terminate_backend(%(pid)s, 1000)", conn.info["transaction"])
        conn.invalidate()
        conn.close()

    monkeypatch.setattr(PostgreSQL, "interrupt", interrupt)

    assert not interrupt_too_late(pooled)


@contextmanager
def contending(store: SqlStore) -> Iterator[None]:
    """Somebody else uses the pooler meanwhile."""
    engine = create_engine(store.url)
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            with engine.begin() as conn:
                conn.execute(text("SELECT pg_sleep(0.001)"))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
        engine.dispose()
