"""Cancelling and rescheduling against a turn that runs meanwhile: one of the two wins, wherever they meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.answering import Asker
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import Change, ChangeOutcome, EntityCommit, Mailbox, NewMessage, Status
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Careful, Party, commits_by, explore, rewrite
from tests.storage.support import (
    SHARD,
    address,
    append,
    change,
    claimed_ids,
    commit_of,
    handle_all,
    message,
    query,
    retried,
)

MEETINGS = 20
LOCKED = "operation FROM entity_conformance.message WHERE id = %(id)s FOR UPDATE"
CANCELLED, RESCHEDULED = ChangeOutcome.CANCELLED, ChangeOutcome.RESCHEDULED
FINISHED = ChangeOutcome.FINISHED


def statuses(store: SqlStore, sent: NewMessage) -> list[str]:
    return [row[0] for row in query(store, "SELECT status FROM {reply} WHERE id = :id", id=sent.id)]


def is_pending(store: SqlStore, sent: NewMessage) -> bool:
    return store.pending_ids([sent.id]) == {sent.id}


def has_state(store: SqlStore, sent: NewMessage) -> bool:
    return store.state(sent.address).state is not None


# Without anybody else


def test_a_cancelled_message_leaves_a_reply_with_its_fingerprint(store: SqlStore) -> None:
    sent = message("a", key="k")
    append(store, sent)

    assert store.cancel(sent.id) == (Change(sent.id, CANCELLED, Status.CANCELLED), [])

    reply = store.replies([sent.id])[sent.id]
    assert (reply.status, reply.address, reply.operation) == (Status.CANCELLED, address("a"), "add")
    assert query(store, "SELECT fingerprint FROM {reply}") == [(sent.fingerprint,)]
    assert handle_all(store) == []


def test_the_key_of_a_cancelled_message_stays_used(store: SqlStore) -> None:
    append(store, message("a", key="k"))
    store.cancel(message("a", key="k").id)

    assert append(store, message("a", key="k")) == ["duplicate"]
    assert append(store, message("a", '{"other": 1}', key="k")) == ["conflict"]
    assert store.pending(None, None, 10) == []


def test_a_cancel_is_announced_to_whoever_waits(postgres: SqlStore) -> None:
    with postgres.waiter() as waiter:
        sent, unheard = message("a", reply_to=waiter.channel), message("b")
        append(postgres, sent, unheard)
        waiter._next_poll_s = 20.0  # type: ignore[attr-defined]
        postgres.cancel(unheard.id)
        postgres.cancel(sent.id)

        # With a poll that is 20 s away, only the announcement can end this before its deadline.
        assert waiter.wait(20.0) is True
        assert statuses(postgres, sent) == ["cancelled"]


def blocked_mailbox(store: SqlStore) -> tuple[NewMessage, NewMessage]:
    """A message that waits for its retry, and one that it holds back."""
    head, behind = message("a"), message("a")
    append(store, head)
    append(store, behind)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        turn = retried(mailbox.mail[0], after_s=600, blocking=True)
        session.commit([commit_of(mailbox, turn)], last=True)
    assert handle_all(store) == []
    return head, behind


def test_a_blocking_head_that_is_cancelled_lets_the_others_pass(store: SqlStore) -> None:
    head, behind = blocked_mailbox(store)

    assert store.cancel(head.id) == (Change(head.id, CANCELLED, Status.CANCELLED), [SHARD])

    assert handle_all(store) == [behind.id]


def test_a_blocking_head_that_is_rescheduled_goes_on_blocking(store: SqlStore) -> None:
    head, behind = blocked_mailbox(store)

    store.reschedule(head.id, delay_s=900, deliver_at_epoch_s=None)
    assert handle_all(store) == []

    assert store.reschedule(head.id, delay_s=0, deliver_at_epoch_s=None)[1] == [SHARD]
    assert handle_all(store) == [head.id, behind.id]


@pytest.mark.parametrize(("delay_s", "rung"), [(0.0, [SHARD]), (600.0, [])])
def test_a_reschedule_rings_if_its_time_has_come(store: SqlStore, delay_s: float, rung: list[ShardId]) -> None:
    sent = message("a", delay_s=60)
    append(store, sent)

    assert store.reschedule(sent.id, delay_s=delay_s, deliver_at_epoch_s=None) == (
        Change(sent.id, RESCHEDULED, None),
        rung,
    )


def test_the_cancel_of_what_an_entity_asked_rings_for_that_entity(store: SqlStore) -> None:
    asker = Asker("default", "3.1.0", address("asker"))
    sent = message("a", reply_to=str(asker))
    append(store, sent)

    assert store.cancel(sent.id)[1] == [asker.shard(store.shards_per_group)]

    [answer] = store.pending(asker.address, asker.shard(store.shards_per_group), 10)
    assert answer.operation == "answered"


# Beside a running turn

Finish = Callable[[Mailbox], EntityCommit]


def retry(mailbox: Mailbox) -> EntityCommit:
    return commit_of(mailbox, retried(mailbox.mail[0], after_s=600, blocking=True))


def sent_to_many(store: SqlStore) -> list[NewMessage]:
    many = [message(f"a{n}") for n in range(MEETINGS)]
    append(store, *many)
    return many


def meet(
    store: SqlStore, finish: Finish, act: Callable[[str], Any], check: Callable[[NewMessage, CommitResult, Any], None]
) -> None:
    """Have the commits of running turns and `act` on their messages meet at every statement, from either side."""

    def commit_first(session: Any, boxes: Sequence[Mailbox], many: Sequence[NewMessage]) -> int:
        return explore(
            store,
            "drain",
            lambda n: session.commit([finish(boxes[n])], last=False),
            lambda n: act(many[n].id),
            lambda n, committed, acted: check(many[n], committed, acted),
        )

    def act_first(session: Any, boxes: Sequence[Mailbox], many: Sequence[NewMessage]) -> int:
        return explore(
            store,
            "client",
            lambda n: act(many[n].id),
            lambda n: session.commit([finish(boxes[n])], last=False),
            lambda n, acted, committed: check(many[n], committed, acted),
        )

    for side in (commit_first, act_first):
        many = sent_to_many(store)
        with store.drain_session(SHARD) as session:
            claimed = {box.mail[0].id: box for box in session.claim(MEETINGS)}
            assert side(session, [claimed[one.id] for one in many], many) >= 1
        change(store, "DELETE FROM {message}")
        change(store, "DELETE FROM {state}")


def cancelled_or_done(store: SqlStore) -> Callable[[NewMessage, CommitResult, Any], None]:
    def check(sent: NewMessage, committed: CommitResult, acted: Any) -> None:
        assert not is_pending(store, sent)
        if sent.address in committed.lost:
            assert acted == (Change(sent.id, CANCELLED, Status.CANCELLED), [])
            assert statuses(store, sent) == ["cancelled"]
            assert not has_state(store, sent)
        else:
            assert acted == (Change(sent.id, FINISHED, Status.DONE), [])
            assert statuses(store, sent) == ["done"]
            assert has_state(store, sent)

    return check


@pytest.mark.parametrize("way", [Commits, Careful])
def test_a_cancel_and_a_running_turn_never_both_win(durable: SqlStore, way: type[Commits]) -> None:
    commits_by(durable, way)

    meet(durable, commit_of, durable.cancel, cancelled_or_done(durable))


def test_without_the_row_lock_a_done_message_would_be_called_cancelled(postgres: SqlStore) -> None:
    rewrite(postgres, LOCKED, LOCKED.removesuffix(" FOR UPDATE"))

    with pytest.raises(AssertionError):
        meet(postgres, commit_of, postgres.cancel, cancelled_or_done(postgres))


def rescheduled_or_done(store: SqlStore) -> Callable[[NewMessage, CommitResult, Any], None]:
    def check(sent: NewMessage, committed: CommitResult, acted: Any) -> None:
        if sent.address in committed.lost:
            assert acted == (Change(sent.id, RESCHEDULED, None), [])
            assert is_pending(store, sent)
            assert statuses(store, sent) == []
            assert not has_state(store, sent)
        else:
            assert acted == (Change(sent.id, FINISHED, Status.DONE), [])
            assert not is_pending(store, sent)
            assert has_state(store, sent)

    return check


def later(store: SqlStore) -> Callable[[str], Any]:
    return lambda message_id: store.reschedule(message_id, delay_s=600, deliver_at_epoch_s=None)


@pytest.mark.parametrize("way", [Commits, Careful])
def test_a_reschedule_and_a_running_turn_never_both_win(durable: SqlStore, way: type[Commits]) -> None:
    commits_by(durable, way)

    meet(durable, commit_of, later(durable), rescheduled_or_done(durable))


def test_without_a_new_rev_a_rescheduled_message_would_be_done_at_once(durable: SqlStore) -> None:
    rewrite(durable, ", rev = rev + 1 WHERE", " WHERE")

    with pytest.raises(AssertionError):
        meet(durable, commit_of, later(durable), rescheduled_or_done(durable))


def test_a_cancel_beats_a_retry_before_it_and_after_it(durable: SqlStore) -> None:
    def check(sent: NewMessage, committed: CommitResult, acted: Any) -> None:
        change, ring = acted
        assert change == Change(sent.id, CANCELLED, Status.CANCELLED)
        # After the retry it was a blocking head, before it not: then the turn has lost.
        assert ring == ([] if sent.address in committed.lost else [SHARD])
        assert statuses(durable, sent) == ["cancelled"]
        assert not is_pending(durable, sent)

    meet(durable, retry, durable.cancel, check)


def test_of_a_reschedule_and_a_retry_the_later_one_says_when(durable: SqlStore) -> None:
    def soon(message_id: str) -> Any:
        return durable.reschedule(message_id, delay_s=0, deliver_at_epoch_s=None)

    def check(sent: NewMessage, committed: CommitResult, acted: Any) -> None:
        assert acted == (Change(sent.id, RESCHEDULED, None), [SHARD])
        # Whichever was first: either the retry lost, or it was overruled.
        attempts = query(durable, "SELECT attempt FROM {message} WHERE id = :id", id=sent.id)
        assert attempts == [(0 if sent.address in committed.lost else 1,)]

    meet(durable, retry, soon, check)


def test_the_other_mail_of_a_cancelled_turns_entity_is_handled_again(durable: SqlStore) -> None:
    first, second = message("a"), message("a")
    append(durable, first)
    append(durable, second)
    with durable.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        durable.cancel(first.id)

        assert session.commit([commit_of(mailbox)], last=True).lost == {address("a")}
        session.release([mailbox])
        [again] = session.claim(10)

        assert claimed_ids([again]) == [second.id]


def test_a_cancel_waits_for_a_turn_that_has_its_transaction_open(durable: SqlStore) -> None:
    sent = message("a")
    append(durable, sent)
    with durable.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.open_turn(mailbox, mailbox.mail[0])
        cancelling = Party(lambda: durable.cancel(sent.id))
        cancelling.until_done_or_blocked(durable)
        assert not cancelling.is_done

        assert session.commit_turn(commit_of(mailbox)).lost == frozenset()

    assert cancelling.join() == (Change(sent.id, FINISHED, Status.DONE), [])


def test_a_message_that_has_an_answer_cannot_get_another_by_a_cancel(durable: SqlStore) -> None:
    sent = message("a")
    append(durable, sent)
    answer = "INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, finished_at) VALUES "
    change(
        durable,
        f"{answer} (:id, 'f', 'Account', 'a', 'add', 'done', {durable.dialect.now})".replace(":id", f"'{sent.id}'"),
    )

    with pytest.raises(StoreUnavailable):
        durable.cancel(sent.id)

    assert statuses(durable, sent) == ["done"]
    assert is_pending(durable, sent)
