"""Mail of one entity comes in the order of sending, also when a drain could not handle what it claimed."""

from __future__ import annotations

from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import SHARD, append, change, claimed_ids, commit_of, handle, message

NOTE = "INSERT INTO {in_flight} (token, message_ids, noted_at) VALUES ('dead', :ids, {now})"


def six_of_one_entity(store: SqlStore) -> list[str]:
    sent = [message("a") for _ in range(6)]
    for one in sent:
        append(store, one)
    return [one.id for one in sent]


def test_mail_that_was_seen_does_not_overtake_mail_that_ended_a_process(store: SqlStore) -> None:
    sent = six_of_one_entity(store)
    change(store, NOTE.replace("{now}", store.dialect.now), ids=store.dialect.rows(sent[:3]))

    with store.drain_session(SHARD) as session:
        assert handle(session, limit=2) == sent


def test_mail_that_was_seen_does_not_overtake_mail_that_was_given_back(store: SqlStore) -> None:
    sent = six_of_one_entity(store)

    with store.drain_session(SHARD) as session:
        session.keep_only([], session.claim(2))

        assert handle(session, limit=2) == sent


def test_mail_that_was_seen_does_not_overtake_mail_that_was_released_unhandled(store: SqlStore) -> None:
    sent = six_of_one_entity(store)

    with store.drain_session(SHARD) as session:
        session.release(session.claim(2))

        assert handle(session, limit=2) == sent


def test_mail_that_was_seen_does_not_overtake_mail_whose_commit_was_lost(store: SqlStore) -> None:
    sent = six_of_one_entity(store)

    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(2)
        change(store, "UPDATE {message} SET rev = rev + 1 WHERE id = :id", id=sent[0])
        assert session.commit([commit_of(mailbox)], last=True).lost == {mailbox.address}
        session.release([mailbox])

        assert handle(session, limit=2) == sent


def test_what_was_seen_is_used_after_a_batch_that_was_handled(store: SqlStore) -> None:
    sent = six_of_one_entity(store)

    with store.drain_session(SHARD) as session:
        handled = []
        while mailboxes := session.claim(2):
            handled += claimed_ids(mailboxes)
            session.commit([commit_of(mailbox) for mailbox in mailboxes], last=True)
            session.release(mailboxes)

    assert handled == sent


def test_mail_that_ended_a_process_comes_alone_and_in_its_place(store: SqlStore) -> None:
    sent = [message(f"e{n}") for n in range(4)]
    append(store, *sent)
    change(store, NOTE.replace("{now}", store.dialect.now), ids=store.dialect.rows([sent[2].id]))

    batches = []
    with store.drain_session(SHARD) as session:
        while mailboxes := session.claim(100):
            batches.append(claimed_ids(mailboxes))
            session.commit([commit_of(mailbox) for mailbox in mailboxes], last=True)
            session.release(mailboxes)

    assert batches == [[sent[0].id, sent[1].id], [sent[2].id], [sent[3].id]]
