"""The commit of turns: each entity wins or loses as a whole, and everything a turn leaves behind is in it."""

from __future__ import annotations

import time

import msgspec
import pytest

from entitycelery.message import Failure, Status
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    BROKEN,
    CONFLICT,
    DUPLICATE,
    FULL,
    SHARD,
    address,
    append,
    change,
    claimed_ids,
    commit_of,
    ended,
    handle,
    handle_all,
    message,
    query,
    retried,
    shards_of,
)


def state_of(store: SqlStore, entity_id: str = "a") -> str | None:
    text = store.state(address(entity_id)).state
    return None if text is None else text.replace(" ", "")


def test_a_commit_writes_state_and_reply_and_removes_the_message(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)

        result = session.commit([commit_of(mailbox, state='{"n":5}')], last=True)

    assert (result.lost, result.refused) == (frozenset(), {})
    assert state_of(store) == '{"n":5}'
    assert store.pending_ids([sent.id]) == set()
    assert store.replies([sent.id])[sent.id].status is Status.DONE


def test_nothing_of_an_uncommitted_turn_is_visible(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    with store.drain_session(SHARD) as session:
        session.claim(10)

    assert store.state(address("a")).version == 0
    assert store.replies([sent.id]) == {}
    assert store.pending_ids([sent.id]) == {sent.id}


def test_every_commit_of_an_entity_bumps_its_version_even_with_the_same_state(store: SqlStore) -> None:
    versions = []
    for _ in range(3):
        append(store, message("a"))
        handle_all(store)
        versions.append(store.state(address("a")).version)

    assert versions == [1, 2, 3]


def test_a_failed_turn_bumps_the_version_too(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, ended(mailbox.mail[0], status=Status.FAILED), state=None)], last=True)

    assert (store.state(address("a")).version, state_of(store)) == (1, None)


def test_a_deleted_entity_leaves_a_tombstone_that_keeps_the_version(store: SqlStore) -> None:
    for state in ('{"n":1}', None, '{"n":2}'):
        append(store, message("a"))
        with store.drain_session(SHARD) as session:
            [mailbox] = session.claim(10)
            session.commit([commit_of(mailbox, state=state)], last=True)

    assert store.state(address("a")).version == 3


def test_a_commit_from_an_older_version_loses(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        change(
            store,
            "INSERT INTO {state} (type, entity_id, version, state_version, state, updated_at) "
            "SELECT 'Account', 'a', 1, 1, args, sent_at FROM {message}",
        )

        result = session.commit([commit_of(mailbox, state='{"n":9}')], last=True)

    assert result.lost == {address("a")}
    assert state_of(store) == "{}"
    assert store.pending_ids(claimed_ids([mailbox])) == set(claimed_ids([mailbox]))
    assert store.replies(claimed_ids([mailbox])) == {}


def test_a_commit_of_a_message_that_is_gone_loses(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        change(store, "DELETE FROM {message}")

        result = session.commit([commit_of(mailbox)], last=True)

    assert result.lost == {address("a")}
    assert store.state(address("a")).version == 0


def test_a_commit_of_a_message_that_changed_loses(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        change(store, "UPDATE {message} SET rev = rev + 1")

        result = session.commit([commit_of(mailbox)], last=True)

    assert result.lost == {address("a")}
    assert store.state(address("a")).version == 0
    assert store.replies(claimed_ids([mailbox])) == {}


def test_the_loser_is_an_entity_with_all_its_turns(store: SqlStore) -> None:
    append(store, message("a"))
    append(store, message("a"))
    append(store, message("b"))
    with store.drain_session(SHARD) as session:
        mailboxes = session.claim(10)
        [loser] = [m for m in mailboxes if m.address.id == "a"]
        change(store, "DELETE FROM {message} WHERE id = :id", id=loser.mail[0].id)

        result = session.commit([commit_of(m) for m in mailboxes], last=True)

    assert result.lost == {address("a")}
    assert store.state(address("a")).version == 0
    assert store.state(address("b")).version == 1
    assert store.pending_ids([loser.mail[1].id]) == {loser.mail[1].id}


@pytest.mark.parametrize("status", [Status.DONE, Status.DEAD])
def test_a_losers_outgoing_mail_and_dead_letters_go_with_it(store: SqlStore, status: Status) -> None:
    append(store, message("a"))
    sent = message("target")
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        change(store, "UPDATE {message} SET rev = rev + 1")

        session.commit([commit_of(mailbox, ended(mailbox.mail[0], status=status, outgoing=[sent]))], last=True)

    assert store.pending_ids([sent.id]) == set()
    assert query(store, "SELECT * FROM {dead_letter}") == []


def test_the_second_of_two_commits_of_one_claim_loses(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox)], last=False)

        assert session.commit([commit_of(mailbox)], last=True).lost == {address("a")}

    assert store.state(address("a")).version == 1


# Outgoing mail


def test_outgoing_mail_is_stored_with_the_commit_in_the_order_of_sending(store: SqlStore) -> None:
    append(store, message("a"))
    sent = [message("target") for _ in range(20)]
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=sent))], last=True)
        session.release([mailbox])

        assert handle(session) == [m.id for m in sent]


@pytest.mark.parametrize("finished", [False, True])
def test_outgoing_mail_with_a_known_key_is_a_duplicate(store: SqlStore, finished: bool) -> None:
    append(store, message("target", key="k"))
    if finished:
        handle_all(store)
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = [m for m in session.claim(10) if m.address.id == "a"]

        result = session.commit(
            [commit_of(mailbox, ended(mailbox.mail[0], outgoing=[message("target", key="k")]))], last=True
        )

    assert (result.lost, result.refused) == (frozenset(), {})
    assert store.mailbox_status(address("target"), SHARD).pending == (0 if finished else 1)


@pytest.mark.parametrize("finished", [False, True])
def test_outgoing_mail_that_conflicts_undoes_the_commit_and_names_itself(store: SqlStore, finished: bool) -> None:
    append(store, message("target", '{"n":1}', key="k"))
    if finished:
        handle_all(store)
    append(store, message("a"))
    conflicting, beside = message("target", '{"n":2}', key="k"), message("beside")
    with store.drain_session(SHARD) as session:
        [mailbox] = [m for m in session.claim(10) if m.address.id == "a"]

        result = session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=[beside, conflicting]))], last=True)

    assert result.refused == {conflicting: CONFLICT}
    assert store.state(address("a")).version == 0
    assert store.pending_ids([beside.id, mailbox.mail[0].id]) == {mailbox.mail[0].id}


def test_outgoing_mail_to_a_full_mailbox_undoes_the_commit_and_names_itself(store: SqlStore) -> None:
    append(store, message("target"))
    append(store, message("a"))
    sent = message("target", capacity=1)
    with store.drain_session(SHARD) as session:
        [mailbox] = [m for m in session.claim(10) if m.address.id == "a"]

        result = session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=[sent]))], last=True)

    assert result.refused == {sent: FULL}
    assert store.state(address("a")).version == 0


def test_only_what_does_not_fit_is_refused(store: SqlStore) -> None:
    append(store, message("a"))
    sent = [message("target", capacity=2) for _ in range(3)]
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)

        result = session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=sent))], last=True)

    assert result.refused == {sent[2]: FULL}


def test_a_turn_that_sends_its_own_key_meets_itself(store: SqlStore) -> None:
    append(store, message("a", key="k"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)

        result = session.commit(
            [commit_of(mailbox, ended(mailbox.mail[0], outgoing=[message("a", key="k")]))], last=True
        )

    assert (result.lost, result.refused) == (frozenset(), {})
    assert append(store, message("a", key="k")) == [DUPLICATE]
    assert store.pending(None, None, 10) == []


# Retries


def test_a_retry_sets_due_time_attempt_and_rev_and_keeps_the_failure(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)

        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=600))], last=True)

    [pending] = store.pending(None, None, 10)
    assert pending.attempt == 1
    assert pending.due_at_epoch_s == pytest.approx(time.time() + 600, abs=60)
    assert pending.last_failure == BROKEN
    assert query(store, "SELECT rev FROM {message}") == [(1,)]
    assert store.replies(claimed_ids([mailbox])) == {}


def test_a_retry_is_claimed_again_when_it_is_due(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=0))], last=True)
        session.release([mailbox])

        [again] = session.claim(10)

    assert (again.mail[0].id, again.mail[0].attempt, again.mail[0].rev) == (mailbox.mail[0].id, 1, 1)


def test_a_retrying_message_lets_later_mail_pass(store: SqlStore) -> None:
    first, second = message("a"), message("a")
    append(store, first)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=600))], last=True)
        session.release([mailbox])
        append(store, second)

        assert handle(session) == [second.id]


def test_a_blocking_head_holds_later_mail_of_its_entity_back(store: SqlStore) -> None:
    head, behind, delayed, elsewhere = (
        message("a"),
        message("a"),
        message("a", deliver_at_epoch_s=1.0),
        message("b"),
    )
    append(store, head)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=600, blocking=True))], last=True)
        session.release([mailbox])
        append(store, behind, delayed, elsewhere)

        assert handle(session) == [elsewhere.id]

    assert store.waiting_shards(shards_of("default")) == []
    assert store.due_moments(dict.fromkeys(shards_of("default"), 0.0)).due == {}


def test_a_blocking_head_that_is_due_runs_first_and_lets_the_rest_go(store: SqlStore) -> None:
    head, behind = message("a"), message("a")
    append(store, head)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=0, blocking=True))], last=True)
        session.release([mailbox])
        append(store, behind)

        [again] = session.claim(10)
        assert claimed_ids([again]) == [head.id]
        session.commit([commit_of(again)], last=True)
        session.release([again])

        assert handle(session) == [behind.id]


def test_a_delayed_message_blocks_nothing(store: SqlStore) -> None:
    delayed, later = message("a", delay_s=600), message("a")
    append(store, delayed)
    append(store, later)

    assert handle_all(store) == [later.id]


# Dead letters


def test_a_dead_message_becomes_a_letter_and_a_reply(store: SqlStore) -> None:
    sent = message("a", '{"n": 1}', sender="Account/b")
    append(store, sent)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)

        session.commit([commit_of(mailbox, ended(mailbox.mail[0], status=Status.DEAD))], last=True)

    [(message_id, operation, sender, attempt, fingerprint, reason, failure)] = query(
        store,
        "SELECT id, operation, sender, attempt, fingerprint, reason, {failure} FROM {dead_letter}".replace(
            "{failure}", store.dialect.json_text("failure")
        ),
    )
    assert (message_id, operation, sender, attempt, fingerprint, reason) == (
        sent.id,
        "add",
        "Account/b",
        1,
        sent.fingerprint,
        "HandlerFailed",
    )
    assert msgspec.json.decode(failure, type=Failure) == BROKEN
    assert store.replies([sent.id])[sent.id].status is Status.DEAD
    assert store.pending(None, None, 10) == []


def test_ended_and_retried_turns_are_committed_together(store: SqlStore) -> None:
    append(store, message("a"))
    append(store, message("a"))
    append(store, message("b"))
    with store.drain_session(SHARD) as session:
        mailboxes = {m.address.id: m for m in session.claim(10)}
        first, second = mailboxes["a"].mail

        result = session.commit(
            [commit_of(mailboxes["b"]), commit_of(mailboxes["a"], ended(first), retried(second, after_s=600))],
            last=True,
        )

    assert result.lost == frozenset()
    assert store.replies([first.id]).keys() == {first.id}
    assert store.pending_ids([second.id]) == {second.id}
    assert store.state(address("b")).version == 1
