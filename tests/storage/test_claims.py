"""Claims: who gets which mail, in which order, and when it is free again."""

from __future__ import annotations

from typing import NoReturn

import pytest
from sqlalchemy.exc import OperationalError

from entitycelery.address import Address
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    OTHER_SHARD,
    SHARD,
    address,
    append,
    change,
    claimed_ids,
    commit_of,
    handle,
    handle_all,
    holder,
    make_store,
    message,
    query,
    shards_of,
)
from tests.waiting import eventually


def test_a_claim_reads_the_state_and_the_mail_of_an_entity(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, state='{"n":7}')], last=True)
        session.release([mailbox])
        sent = message("a")
        append(store, sent)

        [mailbox] = session.claim(10)

    assert claimed_ids([mailbox]) == [sent.id]
    assert (mailbox.stored.version, mailbox.stored.state_version) == (1, 1)
    assert mailbox.stored.state is not None
    assert mailbox.stored.state.replace(" ", "") == '{"n":7}'


def test_a_drain_reads_its_own_shard_only(store: SqlStore) -> None:
    append(store, message("a", shard=OTHER_SHARD))

    assert handle_all(store, SHARD) == []


def test_mail_is_read_in_the_order_in_which_it_was_sent(store: SqlStore) -> None:
    sent = [message(f"e{n % 3}") for n in range(30)]
    for one in sent:
        append(store, one)

    with store.drain_session(SHARD) as session:
        mailboxes = session.claim(100)

    for mailbox in mailboxes:
        assert [m.id for m in mailbox.mail] == [m.id for m in sent if m.address == mailbox.address]


def test_a_limited_claim_takes_the_oldest_mail_first(store: SqlStore) -> None:
    sent = [message("a") for _ in range(10)]
    for one in sent:
        append(store, one)

    with store.drain_session(SHARD) as session:
        assert claimed_ids(session.claim(4)) == [m.id for m in sent[:4]]


def test_a_claimed_entity_is_nobody_elses(store: SqlStore) -> None:
    append(store, message("a"), message("b"))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        assert len(first.claim(10)) == 2
        late = message("a")
        append(store, late)

        assert second.claim(10) == []


def test_entities_that_one_drain_left_are_claimed_by_another(store: SqlStore) -> None:
    for n in range(6):
        append(store, message(f"e{n}"))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        mine, theirs = first.claim(2), second.claim(100)

    assert {m.address for m in mine} & {m.address for m in theirs} == set()
    assert len(mine) + len(theirs) == 6


def test_a_released_entity_can_be_claimed_again(store: SqlStore) -> None:
    append(store, message("a"))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        mailboxes = first.claim(10)
        first.keep_only([], mailboxes)

        assert claimed_ids(second.claim(10)) == claimed_ids(mailboxes)


def test_one_released_entity_of_many_can_be_claimed(store: SqlStore) -> None:
    append(store, message("a"), message("b"))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        mailboxes = first.claim(10)
        [given, kept] = mailboxes
        first.keep_only(claimed_ids([kept]), [given])

        assert claimed_ids(second.claim(10)) == claimed_ids([given])


def test_a_hot_entity_does_not_hide_the_rest_of_its_shard(store: SqlStore) -> None:
    append(store, *(message("hot") for _ in range(700)))
    quiet = message("quiet")
    append(store, quiet)

    with store.drain_session(SHARD) as busy, store.drain_session(SHARD) as other:
        [mailbox] = busy.claim(10)
        assert mailbox.address == address("hot")

        assert claimed_ids(other.claim(10)) == [quiet.id]


def test_many_busy_entities_do_not_hide_a_free_one(store: SqlStore) -> None:
    append(store, *(message(f"busy{n}") for n in range(300)))
    free = message("free")
    append(store, free)

    with store.drain_session(SHARD) as busy, store.drain_session(SHARD) as other:
        assert len(busy.claim(300)) == 300

        assert claimed_ids(other.claim(20)) == [free.id]


def test_busy_entities_of_one_shard_do_not_hide_another_shard(store: SqlStore) -> None:
    append(store, message("busy"))
    with store.drain_session(SHARD) as other, store.drain_session(SHARD, OTHER_SHARD) as session:
        [held] = other.claim(10)
        append(store, first := message("free"))
        [mailbox] = session.claim(10)
        assert claimed_ids([mailbox]) == [first.id]
        # As a turn of the batch may send it: the drain has seen no mail in that shard so far.
        append(store, second := message("elsewhere", shard=OTHER_SHARD))
        session.commit([commit_of(mailbox)], last=True)
        session.release([mailbox])

        assert claimed_ids(session.claim(10)) == [second.id]
        assert session.claim(10) == []
        other.release([held])
        assert [box.address for box in session.claim(10)] == [held.address]


def test_claims_end_with_their_session(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    with store.drain_session(SHARD) as session:
        session.claim(10)

    assert store.mailbox_status(address("a"), SHARD).claimed is False
    assert handle_all(store) == [sent.id]


def test_a_session_that_fails_releases_its_claims(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    try:
        with store.drain_session(SHARD) as session:
            session.claim(10)
            raise LookupError
    except LookupError:
        pass

    assert handle_all(store) == [sent.id]


def test_a_killed_process_releases_its_claims(durable: SqlStore) -> None:
    sent = message("a")
    append(durable, sent)
    url = durable.url.render_as_string(hide_password=False)

    with holder(url) as program:
        assert durable.mailbox_status(address("a"), SHARD).claimed is True
        assert handle_all(durable) == []

        program.kill()

        assert eventually(lambda: handle_all(durable)) == [sent.id]


def test_a_drain_whose_connection_was_closed_under_it_ends_all_the_same(durable: SqlStore) -> None:
    """As psycopg2 does where a greenlet is killed that waits for an answer."""
    sent = message("a")
    append(durable, sent)

    with durable.drain_session(SHARD) as session:
        session.claim(10)
        session._conn.connection.dbapi_connection.close()

    assert eventually(lambda: handle_all(durable)) == [sent.id]


def test_claims_of_two_stores_in_one_process_respect_each_other(durable: SqlStore) -> None:
    append(durable, message("a"))
    second = make_store(durable.url.render_as_string(hide_password=False))

    with durable.drain_session(SHARD) as session:
        assert len(session.claim(10)) == 1

        assert handle_all(second) == []
        assert second.mailbox_status(address("a"), SHARD).claimed is True
    second.close()


def test_the_status_of_a_mailbox_counts_mail_and_tells_of_a_claim(store: SqlStore) -> None:
    append(store, message("a"), message("a", delay_s=60), message("b"))

    with store.drain_session(SHARD) as session:
        before = store.mailbox_status(address("a"), SHARD)
        session.claim(10)
        during = store.mailbox_status(address("a"), SHARD)

    assert (before.pending, before.claimed) == (2, False)
    assert (during.pending, during.claimed) == (2, True)


def test_looking_at_a_status_is_no_claim(store: SqlStore) -> None:
    append(store, message("a"))

    store.mailbox_status(address("a"), SHARD)

    assert len(handle_all(store)) == 1


def test_the_fence_grows_with_every_claim(store: SqlStore) -> None:
    fences: list[int] = []
    for _ in range(3):
        append(store, message("a"))
        with store.drain_session(SHARD) as session:
            [mailbox] = session.claim(10)
            fences.append(mailbox.fence)
            session.commit([commit_of(mailbox)], last=True)
            session.release([mailbox])
            append(store, message("a"))
            [mailbox] = session.claim(10)
            fences.append(mailbox.fence)

    assert fences == sorted(set(fences))


def test_entities_of_two_types_with_one_id_are_two(store: SqlStore) -> None:
    append(store, message("a", type_name="Account"), message("a", type_name="Card"))

    with store.drain_session(SHARD) as session:
        found = {mailbox.address for mailbox in session.claim(10)}

    assert found == {Address("Account", "a"), Address("Card", "a")}


def test_a_key_that_is_claimed_twice_needs_one_release(store: SqlStore) -> None:
    append(store, message("a"))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        mailboxes = first.claim(10)
        first.claim(10)
        first.commit([commit_of(mailboxes[0])], last=True)
        first.release(mailboxes)
        late = message("a")
        append(store, late)

        assert claimed_ids(second.claim(10)) == [late.id]


def test_a_claim_gives_nothing_that_the_drain_holds_already(store: SqlStore) -> None:
    append(store, message("a"))

    with store.drain_session(SHARD) as session:
        assert len(session.claim(10)) == 1

        assert session.claim(10) == []


def test_releasing_twice_takes_nothing_from_the_next_holder(store: SqlStore) -> None:
    append(store, message("a"))

    with (
        store.drain_session(SHARD) as first,
        store.drain_session(SHARD) as second,
        store.drain_session(SHARD) as third,
    ):
        mailboxes = first.claim(10)
        first.keep_only([], mailboxes)
        assert len(second.claim(10)) == 1
        first.release(mailboxes)

        assert third.claim(10) == []


def test_two_entities_with_one_lock_key_are_claimed_and_released_together(store: SqlStore) -> None:
    append(store, message("a", lock_key=4711), message("b", lock_key=4711))

    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        mailboxes = first.claim(10)
        assert {m.address.id for m in mailboxes} == {"a", "b"}
        [given, kept] = mailboxes
        first.keep_only(claimed_ids([kept]), [given])
        assert second.claim(10) == []
        first.keep_only([], [kept])

        assert {m.address.id for m in second.claim(10)} == {"a", "b"}


def test_mail_that_arrives_while_an_entity_is_claimed_is_read_with_the_next_claim(store: SqlStore) -> None:
    first, second = message("a"), message("a")
    append(store, first)

    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        append(store, second)
        session.commit([commit_of(mailbox)], last=True)
        session.release([mailbox])

        assert handle(session) == [second.id]


def test_due_mail_and_ready_mail_are_read_in_the_order_of_sending(store: SqlStore) -> None:
    first, second = message("a", deliver_at_epoch_s=1.0), message("a")
    append(store, first)
    append(store, second)

    assert handle_all(store) == [first.id, second.id]


def test_shards_that_wait_are_listed_with_their_oldest_mail(store: SqlStore) -> None:
    append(store, message("a"), message("b", shard=OTHER_SHARD, deliver_at_epoch_s=1.0))

    ready = store.waiting_shards(shards_of("default"))

    assert [m.shard for m in ready] == [SHARD]
    assert 0 <= ready[0].waiting_s < 60


def test_shards_of_unknown_groups_do_not_wait(store: SqlStore) -> None:
    append(store, message("a"))

    assert store.waiting_shards(shards_of("other")) == []


def test_ids_of_every_script_are_kept_as_they_are(store: SqlStore) -> None:
    names = ["ünïcødé", "emoji🙂", "a/b/c", "quote'\"", "percent%s%%", ":colon", "{brace}", " "]
    append(store, *(message(name) for name in names))

    with store.drain_session(SHARD) as session:
        assert {m.address.id for m in session.claim(100)} == set(names)


def test_a_note_is_written_with_the_claim_and_cleared_with_the_last_commit(store: SqlStore) -> None:
    append(store, message("a"), message("b"))

    with store.drain_session(SHARD) as session:
        mailboxes = session.claim(10)
        [(noted,)] = query(store, "SELECT message_ids FROM {in_flight}")
        session.commit([commit_of(mailboxes[0])], last=False)
        kept = query(store, "SELECT count(*) FROM {in_flight}")
        session.commit([commit_of(mailboxes[1])], last=True)
        cleared = query(store, "SELECT count(*) FROM {in_flight}")

    assert all(message_id in noted for message_id in claimed_ids(mailboxes))
    assert (kept, cleared) == ([(1,)], [(0,)])


def test_a_broken_row_of_a_dead_process_holds_nothing_back(sqlite_store: SqlStore) -> None:
    sent = message("a")
    append(sqlite_store, sent)
    change(
        sqlite_store,
        "INSERT INTO {lock} (kind, key, token, process) VALUES ('claim', :key, 't', 'gone')",
        key=str(sent.lock_key),
    )

    assert handle_all(sqlite_store) == [sent.id]
    assert query(sqlite_store, "SELECT * FROM {lock} WHERE process = 'gone'") == []


def test_claims_that_could_not_be_released_are_free_for_the_next_drain_of_the_process(
    durable: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(durable, message("a"))

    def fail(*_: object) -> NoReturn:
        raise OperationalError("DELETE", None, Exception("database is locked"))

    with monkeypatch.context() as patch, durable.drain_session(SHARD) as session:
        assert len(session.claim(10)) == 1
        patch.setattr(durable._locks, "release_all", fail)
        session.end()

    # The pool may give the first one the connection that failed.
    with durable.drain_session(SHARD), durable.drain_session(SHARD) as session:
        assert [mail.address.id for mailbox in session.claim(10) for mail in mailbox.mail] == ["a"]
