"""Storing messages: keys, capacity, due times, and sends on connections of the caller's own."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from entitycelery.exceptions import ConfigurationError, SchemaMissing
from entitycelery.message import Status
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    CONFLICT,
    DUPLICATE,
    FULL,
    SHARD,
    STORED,
    address,
    append,
    commit_of,
    ended,
    handle_all,
    make_store,
    message,
    opened,
)
from tests.waiting import eventually


def test_a_plain_message_is_stored_as_it_was_given(store: SqlStore) -> None:
    sent = message("a", '{"amount":5}', sender="Account/b", reply_to="channel")

    assert append(store, sent) == [STORED]

    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
    [mail] = mailbox.mail
    assert (mail.id, mail.address, mail.operation) == (sent.id, sent.address, sent.operation)
    assert mail.args.replace(" ", "") == '{"amount":5}'
    assert (mail.sender, mail.reply_to) == ("Account/b", "channel")
    assert (mail.attempt, mail.crashes, mail.rev, mail.expired) == (0, 0, 0, False)


def test_many_messages_are_stored_in_one_call(store: SqlStore) -> None:
    sent = [message(f"e{n % 7}") for n in range(500)]

    assert append(store, *sent) == [STORED] * 500

    assert store.pending_ids([m.id for m in sent]) == {m.id for m in sent}


def test_a_key_sent_twice_is_one_message(store: SqlStore) -> None:
    assert append(store, message(key="k")) == [STORED]

    assert append(store, message(key="k")) == [DUPLICATE]

    assert len(store.pending(None, None, 10)) == 1


def test_a_key_sent_twice_in_one_call_is_one_message(store: SqlStore) -> None:
    append(store, message(key="k"), message(key="k"), message(key="other"))

    assert len(store.pending(None, None, 10)) == 2


def test_a_key_with_other_arguments_in_the_same_call_is_a_conflict(store: SqlStore) -> None:
    first, other = message(args='{"n":1}', key="k"), message(args='{"n":2}', key="k")

    assert CONFLICT in append(store, first, other, first)
    assert store.pending(None, None, 10) == []


def test_a_key_with_other_arguments_is_a_conflict_while_the_message_is_pending(store: SqlStore) -> None:
    append(store, message(args='{"n":1}', key="k"))

    assert append(store, message(args='{"n":2}', key="k")) == [CONFLICT]

    [pending] = store.pending(None, None, 10)
    assert pending.args.replace(" ", "") == '{"n":1}'


@pytest.mark.parametrize("status", list(Status))
def test_a_key_is_remembered_after_every_way_its_message_can_end(store: SqlStore, status: Status) -> None:
    append(store, message(args='{"n":1}', key="k"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, ended(mailbox.mail[0], status=status))], last=True)

    assert append(store, message(args='{"n":1}', key="k")) == [DUPLICATE]
    assert append(store, message(args='{"n":2}', key="k")) == [CONFLICT]

    assert store.pending(None, None, 10) == []


def test_a_send_repeated_under_its_nonce_is_the_same_send(store: SqlStore) -> None:
    sent = message()
    store.append([sent], nonce="mine")

    assert store.append([sent], nonce="mine", again=True) == [STORED]

    assert len(store.pending(None, None, 10)) == 1


def test_a_send_repeated_after_it_was_handled_is_not_stored_again(store: SqlStore) -> None:
    sent = message()
    store.append([sent], nonce="mine")
    handle_all(store)

    [outcome] = store.append([sent], nonce="mine", again=True)

    assert outcome is DUPLICATE
    assert store.pending_ids([sent.id]) == set()


def test_a_repeated_send_of_many_stores_those_that_are_missing(store: SqlStore) -> None:
    first, second = message(), message()
    store.append([first], nonce="mine")

    assert store.append([first, second], nonce="mine", again=True) == [STORED, STORED]

    assert store.pending_ids([first.id, second.id]) == {first.id, second.id}


# Capacity


def test_a_mailbox_takes_as_many_messages_as_its_capacity(store: SqlStore) -> None:
    outcomes = [append(store, message("a", capacity=2)) for _ in range(3)]

    assert outcomes == [[STORED], [STORED], [FULL]]
    assert store.mailbox_status(address("a"), SHARD).pending == 2


def test_another_entity_does_not_fill_the_mailbox(store: SqlStore) -> None:
    append(store, message("b"), message("b"), message("b"))

    assert append(store, message("a", capacity=1)) == [STORED]


def test_a_full_mailbox_takes_mail_again_once_it_was_worked_off(store: SqlStore) -> None:
    append(store, message("a", capacity=1))
    handle_all(store)

    assert append(store, message("a", capacity=1)) == [STORED]


def test_a_duplicate_of_a_pending_key_is_never_full(store: SqlStore) -> None:
    append(store, message("a", key="k", capacity=1))

    assert append(store, message("a", key="k", capacity=1)) == [DUPLICATE]


def test_a_duplicate_of_a_finished_key_is_never_full(store: SqlStore) -> None:
    append(store, message("a", key="k", capacity=1))
    handle_all(store)
    append(store, message("a", capacity=1))

    assert append(store, message("a", key="k", capacity=1)) == [DUPLICATE]


def test_one_full_mailbox_refuses_the_whole_send(store: SqlStore) -> None:
    append(store, message("full"))
    sent = [message("a"), message("full", capacity=1), message("b")]

    outcomes = append(store, *sent)

    assert outcomes[1] is FULL
    assert store.pending_ids([m.id for m in sent]) == set()


def test_one_conflict_refuses_the_whole_send(store: SqlStore) -> None:
    append(store, message("a", '{"n":1}', key="k"))
    sent = [message("a"), message("a", '{"n":2}', key="k"), message("b", key="new")]

    outcomes = append(store, *sent)

    assert outcomes[1] is CONFLICT
    assert store.pending_ids([sent[0].id, sent[2].id]) == set()


# Due times


def test_a_delayed_message_is_not_claimed_before_its_time(store: SqlStore) -> None:
    now, later = message("a"), message("b", delay_s=3600)
    append(store, now, later)

    assert handle_all(store) == [now.id]

    [pending] = store.pending(None, None, 10)
    assert pending.due_at_epoch_s == pytest.approx(time.time() + 3600, abs=60)


def test_a_delayed_message_is_claimed_once_it_is_due(store: SqlStore) -> None:
    sent = [message("a", delay_s=0.001), message("b", deliver_at_epoch_s=time.time() - 5)]
    append(store, *sent)
    handled: set[str] = set()

    def all_handled() -> bool:
        handled.update(handle_all(store))
        return handled == {m.id for m in sent}

    assert eventually(all_handled)


def test_a_message_to_be_delivered_at_an_instant_waits_for_it(store: SqlStore) -> None:
    due = time.time() + 3600
    append(store, message("a", deliver_at_epoch_s=due))

    assert handle_all(store) == []

    [pending] = store.pending(None, None, 10)
    assert pending.due_at_epoch_s == pytest.approx(due, abs=0.001)


def test_an_expired_message_is_read_as_expired(store: SqlStore) -> None:
    append(store, message("a", expires_s=0), message("b", expires_s=3600), message("c"))

    with store.drain_session(SHARD) as session:
        mailboxes = session.claim(10)

    assert {m.address.id: m.mail[0].expired for m in mailboxes} == {"a": True, "b": False, "c": False}


# Shards


@pytest.mark.parametrize("key", [None, "k"])
def test_a_sender_that_hashed_with_another_number_of_shards_is_refused(durable: SqlStore, key: str | None) -> None:
    sleeper = make_store(durable.url.render_as_string(hide_password=False), shards=8)
    sent = message(key=key)

    with pytest.raises(ConfigurationError, match="4 shards per group"):
        append(sleeper, sent)
    sleeper.close()

    assert durable.pending_ids([sent.id]) == set()


# On the caller's own connection


@pytest.mark.parametrize("key", [None, "k"])
def test_a_send_on_the_callers_connection_commits_with_it(durable: SqlStore, key: str | None) -> None:
    engine = create_engine(durable.url)
    sent = message(key=key)
    with engine.begin() as conn:
        assert append(durable, sent, connection=conn) == [STORED]

    assert durable.pending_ids([sent.id]) == {sent.id}
    engine.dispose()


@pytest.mark.parametrize("key", [None, "k"])
def test_a_send_on_the_callers_connection_vanishes_with_its_rollback(durable: SqlStore, key: str | None) -> None:
    engine = create_engine(durable.url)
    sent = message(key=key)
    with engine.connect() as conn:
        append(durable, sent, connection=conn)
        conn.rollback()

    assert durable.pending_ids([sent.id]) == set()
    engine.dispose()


def test_a_send_on_the_callers_connection_is_unseen_before_its_commit(postgres: SqlStore) -> None:
    engine = create_engine(postgres.url)
    sent = message()
    with engine.connect() as conn:
        append(postgres, sent, connection=conn)

        assert handle_all(postgres) == []

        conn.commit()
    assert handle_all(postgres) == [sent.id]
    engine.dispose()


def test_a_send_in_the_callers_session_shares_its_fate(durable: SqlStore) -> None:
    engine = create_engine(durable.url)
    kept, dropped = message(), message()
    with Session(engine) as session:
        session.execute(text("CREATE TABLE orders (n integer)"))
        session.execute(text("INSERT INTO orders VALUES (1)"))
        append(durable, kept, connection=session)
        session.commit()
        session.execute(text("INSERT INTO orders VALUES (2)"))
        append(durable, dropped, connection=session)
        session.rollback()
        rows = session.execute(text("SELECT n FROM orders")).all()

    assert [tuple(row) for row in rows] == [(1,)]
    assert durable.pending_ids([kept.id, dropped.id]) == {kept.id}
    engine.dispose()


def test_a_refused_send_leaves_the_callers_transaction_usable(durable: SqlStore) -> None:
    append(durable, message(args='{"n":1}', key="k"))
    engine = create_engine(durable.url)
    beside, kept = message(), message()
    with engine.begin() as conn:
        append(durable, kept, connection=conn)

        outcomes = append(durable, beside, message(args='{"n":2}', key="k"), connection=conn)

        assert outcomes[1] is CONFLICT
    assert durable.pending_ids([beside.id, kept.id]) == {kept.id}
    engine.dispose()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_keyed_send_in_a_stricter_transaction_is_refused(postgres: SqlStore, level: str) -> None:
    engine = create_engine(postgres.url, isolation_level=level)
    plain = message()
    with engine.begin() as conn:
        with pytest.raises(ConfigurationError, match="READ COMMITTED"):
            append(postgres, message(key="k"), connection=conn)
        append(postgres, plain, connection=conn)

    assert postgres.pending_ids([plain.id]) == {plain.id}
    engine.dispose()


def test_a_connection_to_another_kind_of_database_is_refused(sqlite_url: str, postgres_url: str) -> None:
    with opened(sqlite_url) as lite, opened(postgres_url) as postgres:
        theirs = {lite: create_engine(postgres.url), postgres: create_engine(lite.url)}
        for store, engine in theirs.items():
            with engine.connect() as conn, pytest.raises(ConfigurationError, match="connection="):
                append(store, message(), connection=conn)
            engine.dispose()


def test_a_connection_to_another_sqlite_file_is_refused(sqlite_url: str, tmp_path: object) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/theirs.db")

    with opened(sqlite_url) as store, engine.connect() as conn, pytest.raises(ConfigurationError, match=r"theirs\.db"):
        append(store, message(), connection=conn)
    engine.dispose()


def test_a_connection_to_a_database_without_the_schema_is_told_so(postgres: SqlStore) -> None:
    engine = create_engine(postgres.url.set(database="postgres"))

    with engine.connect() as conn, pytest.raises(SchemaMissing):
        append(postgres, message(), connection=conn)
    engine.dispose()


def test_something_that_is_no_sqlalchemy_connection_is_refused(store: SqlStore) -> None:
    with pytest.raises(ConfigurationError, match=r"builtins\.object"):
        append(store, message(), connection=object())
