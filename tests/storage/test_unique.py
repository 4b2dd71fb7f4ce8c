"""Keys as mutexes on every store: who holds a key, and what becomes of further sends. Nothing has to be released."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
from sqlalchemy import create_engine, text

from entitycelery.exceptions import ConfigurationError
from entitycelery.message import (
    Appended,
    AppendOutcome,
    DeadLetterFilter,
    Ended,
    Mailbox,
    NewMessage,
    Retried,
    Status,
)
from entitycelery.storage.port import Ear
from entitycelery.storage.sessions import DrainSession
from entitycelery.storage.sql.store import SqlStore
from entitycelery.unique import UniqueRule
from tests.storage.interleave import Party, before
from tests.storage.support import (
    CONFLICT,
    FULL,
    JOINED,
    SHARD,
    STORED,
    TAKEN,
    address,
    append,
    append_unique,
    change,
    commit_of,
    ended,
    handle_all,
    message,
    opened,
    query,
    retried,
    unique,
)
from tests.waiting import eventually

RULES: tuple[UniqueRule, ...] = get_args(UniqueRule)


def send(store: SqlStore, sent: NewMessage, **options: Any) -> Appended:
    [appended] = append_unique(store, sent, **options)
    return appended


def args_of(store: SqlStore, *ids: str) -> list[Any]:
    """The arguments of pending messages."""
    pending = {one.id: json.loads(one.args) for one in store.pending(None, None, 100)}
    return [pending[message_id] for message_id in ids]


def pending_ids(store: SqlStore) -> list[str]:
    return [one.id for one in store.pending(None, None, 100)]


def due_in_s(store: SqlStore, message_id: str) -> float | None:
    """In how many seconds a message is due; None: at once."""
    due, now = store.dialect.to_epoch("due_at"), store.dialect.to_epoch(store.dialect.now)
    [(left_s,)] = query(store, f"SELECT {due} - {now} FROM {{message}} WHERE id = :id", id=message_id)  # noqa: S608
    return None if left_s is None else float(left_s)


def time_passes(store: SqlStore, seconds: float) -> None:
    """Move every instant of messages and keys into the past."""
    moved = f"- {seconds}" + ("" if store.dialect.name == "sqlite" else " * interval '1 second'")
    for table, columns in (("message", ["due_at", "expires_at", "sent_at"]), ("unique_key", ["begin_at", "end_at"])):
        changes = ", ".join(f"{column} = {column} {moved}" for column in columns)
        change(store, f"UPDATE {{{table}}} SET {changes}")  # noqa: S608 - constants


def claimed(session: DrainSession) -> Mailbox:
    [mailbox] = session.claim(100)
    return mailbox


# Who holds a key


@pytest.mark.parametrize("rule", RULES)
def test_a_message_whose_key_is_free_is_stored_and_handled(store: SqlStore, rule: UniqueRule) -> None:
    sent = unique(rule, '{"n":1}')

    assert send(store, sent) == Appended(STORED, sent.id)

    assert handle_all(store) == [sent.id]


def test_a_second_send_is_rejected_and_told_who_holds_the_key(store: SqlStore) -> None:
    first = unique("reject")
    send(store, first)

    assert send(store, unique("reject", '{"other":1}')) == Appended(TAKEN, first.id)

    assert pending_ids(store) == [first.id]


@pytest.mark.parametrize(
    "other", [{"key": "other"}, {"operation": "other"}, {"entity_id": "other"}], ids=lambda it: next(iter(it))
)
def test_a_key_belongs_to_its_address_and_operation(store: SqlStore, other: dict[str, str]) -> None:
    send(store, unique("reject"))

    assert send(store, unique("reject", **other)).outcome is STORED  # type: ignore[arg-type]


def test_a_key_without_unique_is_another_key(store: SqlStore) -> None:
    append(store, message(key="k"))

    assert send(store, unique("reject")).outcome is STORED
    assert append(store, message(key="k")) == ["duplicate"]


ENDS = {
    "done": lambda mail: ended(mail),
    "failed": lambda mail: ended(mail, status=Status.FAILED),
    "expired": lambda mail: ended(mail, status=Status.EXPIRED),
    "dead": lambda mail: ended(mail, status=Status.DEAD),
}


@pytest.mark.parametrize("end", [*ENDS, "cancelled"])
def test_whatever_its_end_a_message_gives_its_key_back(store: SqlStore, end: str) -> None:
    first, second = unique("reject"), unique("reject")
    send(store, first)

    if end == "cancelled":
        store.cancel(first.id)
    else:
        with store.drain_session(SHARD) as session:
            box = claimed(session)
            session.commit([commit_of(box, ENDS[end](box.mail[0]))], last=True)

    assert store.replies([first.id])[first.id].status == end
    assert send(store, second) == Appended(STORED, second.id)


def test_a_message_keeps_its_key_while_it_runs_and_while_it_waits_for_a_retry(store: SqlStore) -> None:
    first = unique("reject")
    send(store, first)

    with store.drain_session(SHARD) as session:
        box = claimed(session)
        assert send(store, unique("reject")) == Appended(TAKEN, first.id)
        session.commit([commit_of(box, retried(box.mail[0], after_s=60))], last=True)

    assert send(store, unique("reject")) == Appended(TAKEN, first.id)


def test_a_drain_that_dies_leaves_the_key_to_the_message(durable: SqlStore) -> None:
    first = unique("reject")
    send(durable, first)
    with durable.drain_session(SHARD) as session:
        claimed(session)

    assert send(durable, unique("reject")) == Appended(TAKEN, first.id)
    assert handle_all(durable) == [first.id]
    assert send(durable, unique("reject")).outcome is STORED


def test_the_holder_of_a_key_can_be_asked_for(store: SqlStore) -> None:
    first = unique("reject")
    assert store.unique_holder(first.fingerprint) is None

    send(store, first)
    assert store.unique_holder(first.fingerprint) == first.id

    handle_all(store)
    assert store.unique_holder(first.fingerprint) is None


# The rules


def test_replace_gives_the_message_that_waits_its_arguments(store: SqlStore) -> None:
    first, second = unique("replace", '{"n":1}', sender="Account/x"), unique("replace", '{"n":2}', sender="Account/y")
    send(store, first)

    assert send(store, second) == Appended(JOINED, first.id)

    assert pending_ids(store) == [first.id]
    with store.drain_session(SHARD) as session:
        [mail] = claimed(session).mail
    assert (mail.id, json.loads(mail.args), mail.sender) == (first.id, {"n": 2}, "Account/y")


def test_replace_gives_another_due_time_only_if_it_says_so(store: SqlStore) -> None:
    first = unique("replace", delay_s=600)
    send(store, first)

    send(store, unique("replace", '{"n":2}'))
    assert due_in_s(store, first.id) == pytest.approx(600, abs=30)

    send(store, unique("replace", '{"n":3}', delay_s=60))
    assert due_in_s(store, first.id) == pytest.approx(60, abs=30)


def test_a_running_turn_loses_against_replace_and_runs_with_the_new_arguments(store: SqlStore) -> None:
    first = unique("replace", '{"n":1}')
    send(store, first)
    with store.drain_session(SHARD) as session:
        box = claimed(session)

        assert send(store, unique("replace", '{"n":2}')) == Appended(JOINED, first.id)
        result = session.commit([commit_of(box)], last=True)
        session.release([box])

        assert result.lost == {box.address}
        assert store.state(address()).version == 0
        assert [json.loads(mail.args) for mail in claimed(session).mail] == [{"n": 2}]


def test_queue_lets_one_wait_behind_the_one_that_runs(store: SqlStore) -> None:
    first, second, third = (unique("queue", f'{{"n":{n}}}') for n in (1, 2, 3))
    send(store, first)
    with store.drain_session(SHARD) as session:
        box = claimed(session)

        assert send(store, second) == Appended(STORED, second.id)
        assert send(store, third) == Appended(JOINED, second.id)
        assert session.commit([commit_of(box)], last=True).lost == frozenset()
        session.release([box])

    assert args_of(store, second.id) == [{"n": 3}]
    assert handle_all(store) == [second.id]


def test_a_queued_send_joins_a_message_that_has_not_begun(store: SqlStore) -> None:
    first = unique("queue")
    send(store, first)

    assert send(store, unique("queue")) == Appended(JOINED, first.id)
    assert pending_ids(store) == [first.id]


def test_a_queued_send_joins_a_retry_that_waits_and_does_not_hasten_it(store: SqlStore) -> None:
    first = unique("queue", '{"n":1}')
    send(store, first)
    with store.drain_session(SHARD) as session:
        box = claimed(session)
        session.commit([commit_of(box, retried(box.mail[0], after_s=600))], last=True)

    assert send(store, unique("queue", '{"n":2}')) == Appended(JOINED, first.id)

    assert args_of(store, first.id) == [{"n": 2}]
    assert due_in_s(store, first.id) == pytest.approx(600, abs=30)


def test_a_message_that_two_count_on_expires_with_the_later_of_them(store: SqlStore) -> None:
    first = unique("queue", expires_s=60)
    send(store, first)

    send(store, unique("queue"))
    time_passes(store, 61)

    with store.drain_session(SHARD) as session:
        assert [mail.expired for mail in claimed(session).mail] == [False]


def test_arguments_that_are_replaced_take_their_expiry_with_them(store: SqlStore) -> None:
    send(store, unique("replace", expires_s=60))

    send(store, unique("replace"))
    time_passes(store, 61)

    with store.drain_session(SHARD) as session:
        assert [mail.expired for mail in claimed(session).mail] == [False]


def test_debounce_puts_the_message_off_with_each_send(store: SqlStore) -> None:
    first = unique("debounce", '{"n":1}', delay_s=30)
    send(store, first)
    time_passes(store, 20)

    assert send(store, unique("debounce", '{"n":2}', delay_s=30)) == Appended(JOINED, first.id)

    left_s = due_in_s(store, first.id)
    assert left_s is not None
    assert 20 < left_s <= 30
    assert args_of(store, first.id) == [{"n": 2}]
    time_passes(store, 31)
    assert handle_all(store) == [first.id]


def test_a_stream_of_sends_cannot_put_a_message_off_for_ever(store: SqlStore) -> None:
    first = unique("debounce", delay_s=30)
    send(store, first)

    for _ in range(15):
        time_passes(store, 20)
        assert send(store, unique("debounce", delay_s=30)) == Appended(JOINED, first.id)

    left_s = due_in_s(store, first.id)
    assert left_s is not None
    assert left_s <= 0
    assert handle_all(store) == [first.id]


def test_a_debounced_send_beside_a_running_turn_waits_for_a_quiet_time_of_its_own(store: SqlStore) -> None:
    first, second = unique("debounce", '{"n":1}', delay_s=30), unique("debounce", '{"n":2}', delay_s=30)
    send(store, first)
    time_passes(store, 31)
    with store.drain_session(SHARD) as session:
        box = claimed(session)

        assert send(store, second) == Appended(STORED, second.id)
        assert session.commit([commit_of(box)], last=True).lost == frozenset()

    assert due_in_s(store, second.id) == pytest.approx(30, abs=15)


def test_an_asker_who_joins_is_told_if_nobody_else_waits(store: SqlStore) -> None:
    unheard, heard = unique("queue"), unique("queue", key="other", reply_to="theirs")
    append_unique(store, unheard, heard)

    append_unique(store, unique("queue", reply_to="ours"), unique("queue", key="other", reply_to="ours"))

    with store.drain_session(SHARD) as session:
        mail = {one.id: one.reply_to for one in claimed(session).mail}
    assert mail == {unheard.id: "ours", heard.id: "theirs"}


def test_what_has_joined_has_another_rev(store: SqlStore) -> None:
    first = unique("queue")
    send(store, first)
    send(store, unique("queue"))

    assert query(store, "SELECT rev FROM {message}") == [(1,)]


# The time for which a key is taken at least


def test_a_key_is_taken_for_its_time_though_its_message_has_ended(store: SqlStore) -> None:
    first = unique("reject", for_s=60)
    send(store, first)
    handle_all(store)

    assert send(store, unique("reject", for_s=60)) == Appended(TAKEN, first.id)
    assert store.unique_holder(first.fingerprint) == first.id

    time_passes(store, 61)
    assert store.unique_holder(first.fingerprint) is None
    assert send(store, unique("reject", for_s=60)).outcome is STORED


def test_a_message_keeps_its_key_after_its_time_is_over(store: SqlStore) -> None:
    first = unique("reject", for_s=60)
    send(store, first)
    time_passes(store, 61)

    assert send(store, unique("reject", for_s=60)) == Appended(TAKEN, first.id)


@pytest.mark.parametrize("rule", ["replace", "queue"])
def test_what_is_not_rejected_waits_for_the_end_of_that_time(store: SqlStore, rule: UniqueRule) -> None:
    first, second = unique(rule, for_s=60), unique(rule, '{"n":2}', for_s=60)
    send(store, first)
    handle_all(store)

    assert send(store, second) == Appended(STORED, second.id)
    assert due_in_s(store, second.id) == pytest.approx(60, abs=20)
    assert send(store, unique(rule, '{"n":3}', for_s=60)) == Appended(JOINED, second.id)

    time_passes(store, 61)
    assert args_of(store, second.id) == [{"n": 3}]
    assert handle_all(store) == [second.id]
    # Its own time has begun when the first one's was over.
    third = unique(rule, for_s=60)
    send(store, third)
    left_s = due_in_s(store, third.id)
    assert left_s is not None
    assert 30 < left_s <= 60


def test_a_refused_send_leaves_a_keys_time_as_it_was(store: SqlStore) -> None:
    send(store, unique("reject", for_s=60))
    before_it = query(store, "SELECT message_id, end_at FROM {unique_key}")

    assert send(store, unique("reject", for_s=6_000)).outcome is TAKEN

    assert query(store, "SELECT message_id, end_at FROM {unique_key}") == before_it


# Several messages in one transaction


def test_a_refused_message_refuses_all_that_are_sent_with_it(store: SqlStore) -> None:
    holder = unique("reject")
    send(store, holder)

    outcomes = append_unique(store, message("b"), unique("reject", key="free"), unique("reject"))

    assert outcomes[2] == Appended(TAKEN, holder.id)
    assert pending_ids(store) == [holder.id]
    assert send(store, unique("reject", key="free")).outcome is STORED


def test_a_conflict_undoes_what_has_joined(store: SqlStore) -> None:
    waiting = unique("replace", '{"n":1}')
    append_unique(store, waiting, message("b", key="x"))

    outcomes = append_unique(store, unique("replace", '{"n":2}'), message("b", '{"other":1}', key="x"))

    assert [one.outcome for one in outcomes] == [JOINED, CONFLICT]
    assert args_of(store, waiting.id) == [{"n": 1}]


def test_messages_of_one_call_keep_their_order(store: SqlStore) -> None:
    sent = [message("a"), unique("queue"), message("a", key="x"), unique("queue", key="l"), message("a")]

    append_unique(store, *sent)

    assert handle_all(store) == [one.id for one in sent]


def test_two_of_one_key_in_one_call_are_one_message(store: SqlStore) -> None:
    first, second = unique("queue", '{"n":1}'), unique("queue", '{"n":2}')

    assert append_unique(store, first, second) == [Appended(STORED, first.id), Appended(JOINED, first.id)]

    assert args_of(store, first.id) == [{"n": 2}]


def test_a_message_that_joins_finds_room_in_a_full_mailbox(store: SqlStore) -> None:
    first = unique("queue", capacity=1)
    send(store, first)

    assert send(store, unique("queue", capacity=1)) == Appended(JOINED, first.id)
    assert send(store, unique("queue", key="other", capacity=1)).outcome is FULL
    assert send(store, unique("queue", key="other")).outcome is STORED


@pytest.mark.parametrize("rule", RULES)
def test_a_send_that_is_repeated_because_nobody_knows_how_it_ended_stores_no_second_message(
    store: SqlStore, rule: UniqueRule
) -> None:
    sent = unique(rule, delay_s=0)
    store.append_unique([sent], nonce="n")

    assert store.append_unique([sent], nonce="n", again=True) == [Appended(STORED, sent.id)]
    assert pending_ids(store) == [sent.id]

    handle_all(store)
    assert store.append_unique([sent], nonce="n", again=True) == [Appended(STORED, sent.id)]
    assert pending_ids(store) == []


def test_a_repeated_send_that_had_joined_joins_again(store: SqlStore) -> None:
    first, second = unique("replace", '{"n":1}'), unique("replace", '{"n":2}')
    send(store, first)
    store.append_unique([second], nonce="n")

    assert store.append_unique([second], nonce="n", again=True) == [Appended(JOINED, first.id)]


# On a caller's connection


def test_on_a_callers_connection_the_key_is_taken_with_the_callers_commit(durable: SqlStore) -> None:
    first, undone = unique("reject"), unique("reject")
    engine = create_engine(durable.url)
    with engine.connect() as caller:
        assert send(durable, undone, connection=caller).outcome is STORED
        caller.rollback()
        assert send(durable, first, connection=caller).outcome is STORED
        assert send(durable, unique("reject"), connection=caller) == Appended(TAKEN, first.id)
        caller.commit()
    engine.dispose()

    assert send(durable, unique("reject")) == Appended(TAKEN, first.id)
    assert pending_ids(durable) == [first.id]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_send_waits_for_the_callers_transaction_that_has_its_key(postgres: SqlStore, end: str) -> None:
    theirs, ours = unique("reject"), unique("reject")
    engine = create_engine(postgres.url)
    with engine.connect() as caller:
        send(postgres, theirs, connection=caller)
        other = Party(lambda: send(postgres, ours))
        other.until_done_or_blocked(postgres)
        assert not other.is_done

        getattr(caller, end)()

    assert other.join() == (Appended(TAKEN, theirs.id) if end == "commit" else Appended(STORED, ours.id))
    engine.dispose()


def test_a_callers_connection_of_a_stricter_level_is_refused(postgres: SqlStore) -> None:
    engine = create_engine(postgres.url, isolation_level="REPEATABLE READ")
    with engine.connect() as caller:
        caller.execute(text("SELECT 1"))
        with pytest.raises(ConfigurationError, match="READ COMMITTED"):
            send(postgres, unique("reject"), connection=caller)
    engine.dispose()


# Outgoing mail of turns


def turn_sends(store: SqlStore, *outgoing: NewMessage, sender: str = "sender") -> Any:
    """The commit of a turn that sends these."""
    append(store, message(sender))
    with store.drain_session(SHARD) as session:
        box = next(box for box in session.claim(100) if box.address == address(sender))
        return session.commit([commit_of(box, ended(box.mail[0], outgoing=outgoing))], last=True)


def test_a_turns_message_takes_its_key_with_the_commit(store: SqlStore) -> None:
    out = unique("reject")

    assert turn_sends(store, out).refused == {}

    assert send(store, unique("reject")) == Appended(TAKEN, out.id)


def test_a_turn_whose_message_is_rejected_commits_nothing_and_says_who_holds_the_key(store: SqlStore) -> None:
    holder, out, also = unique("reject"), unique("reject"), message("b")
    send(store, holder)

    result = turn_sends(store, also, out)

    assert result.refused == {out: TAKEN}
    assert result.holders == {out: holder.id}
    assert result.undone == {address("sender")}
    assert store.state(address("sender")).version == 0
    assert also.id not in pending_ids(store)


@pytest.mark.parametrize("rule", ["replace", "queue", "debounce"])
def test_a_turns_message_joins_the_one_that_waits(store: SqlStore, rule: UniqueRule) -> None:
    waiting = unique(rule, '{"n":1}', delay_s=30)
    send(store, waiting)

    assert turn_sends(store, unique(rule, '{"n":2}', delay_s=30)).refused == {}

    assert pending_ids(store) == [waiting.id]
    assert args_of(store, waiting.id) == [{"n": 2}]


@pytest.mark.parametrize("rule", RULES)
def test_a_turn_can_send_its_own_key_again(store: SqlStore, rule: UniqueRule) -> None:
    first, again = unique(rule, delay_s=0), unique(rule, delay_s=0)
    send(store, first)

    with store.drain_session(SHARD) as session:
        box = claimed(session)
        result = session.commit([commit_of(box, ended(box.mail[0], outgoing=[again]))], last=True)

    assert (result.lost, result.refused) == (frozenset(), {})
    assert pending_ids(store) == [again.id]


def test_a_turn_that_is_retried_still_holds_its_key(store: SqlStore) -> None:
    first, out = unique("reject"), unique("reject")
    append_unique(store, first, message("sender"))

    with store.drain_session(SHARD) as session:
        boxes = {box.address: box for box in session.claim(100)}
        failing, sending = boxes[address("a")], boxes[address("sender")]
        turns: list[Retried | Ended] = [retried(failing.mail[0], after_s=60)]
        commits = [
            commit_of(failing, *turns),
            commit_of(sending, ended(sending.mail[0], outgoing=[out])),
        ]
        result = session.commit(commits, last=True)

    assert result.refused == {out: TAKEN}


# Runners are told when it is due


@pytest.fixture
def ear(postgres: SqlStore) -> Iterator[Ear]:
    made = postgres.listen()
    assert made is not None
    yield made
    made.close()


def heard(ear: Ear, due_s: float) -> bool:
    """Whether a moment so many seconds from now is announced."""
    told = eventually(lambda: ear.take().due_epoch_s)
    return abs(told - time.time() - due_s) < 1.5


def test_runners_are_told_of_a_message_that_a_send_hastens(postgres: SqlStore, ear: Ear) -> None:
    send(postgres, unique("replace", delay_s=600))

    send(postgres, unique("replace", delay_s=1))

    assert heard(ear, 1)


def test_runners_are_told_of_a_message_that_a_callers_send_hastens(postgres: SqlStore, ear: Ear) -> None:
    send(postgres, unique("replace", delay_s=600))
    engine = create_engine(postgres.url)
    with engine.connect() as caller:
        send(postgres, unique("replace", delay_s=1), connection=caller)
        caller.commit()
    engine.dispose()

    assert heard(ear, 1)


def test_runners_are_told_of_a_message_that_a_turn_hastens(postgres: SqlStore, ear: Ear) -> None:
    send(postgres, unique("replace", delay_s=600))

    turn_sends(postgres, unique("replace", delay_s=1))

    assert heard(ear, 1)


def test_runners_are_told_of_a_message_that_waits_for_its_key(postgres: SqlStore, ear: Ear) -> None:
    send(postgres, unique("queue", for_s=1.5))
    handle_all(postgres)

    send(postgres, unique("queue"))

    assert heard(ear, 1.5)


# Dead letters


def dead(store: SqlStore, sent: NewMessage) -> None:
    """Send a message and have it die."""
    send(store, sent)
    with store.drain_session(SHARD) as session:
        box = claimed(session)
        session.commit([commit_of(box, ended(box.mail[-1], status=Status.DEAD))], last=True)


def letters(store: SqlStore) -> list[str]:
    return store.dead_letter_ids(DeadLetterFilter(), None)


def test_a_retried_letter_takes_its_key_again(store: SqlStore) -> None:
    first = unique("reject")
    dead(store, first)

    assert [one.id for one in store.retry_dead([first.id])] == [first.id]

    assert send(store, unique("reject")) == Appended(TAKEN, first.id)


def test_a_letter_whose_key_was_taken_meanwhile_stays_a_letter(store: SqlStore) -> None:
    first, second, other = unique("queue", '{"n":1}'), unique("queue", '{"n":2}'), unique("reject", key="other")
    dead(store, other)
    dead(store, first)
    send(store, second)

    assert [one.id for one in store.retry_dead([first.id, other.id])] == [other.id]

    assert letters(store) == [first.id]
    assert set(pending_ids(store)) == {second.id, other.id}
    handle_all(store)
    assert [one.id for one in store.retry_dead([first.id])] == [first.id]


def test_of_two_letters_of_one_key_the_last_is_retried(store: SqlStore) -> None:
    first, second = unique("reject"), unique("reject")
    dead(store, first)
    dead(store, second)

    assert [one.id for one in store.retry_dead([first.id, second.id])] == [second.id]

    assert letters(store) == [first.id]


# Reshards and the clean-up


def test_a_key_stays_with_its_message_when_shards_change(store_url: str) -> None:
    first = unique("reject")
    with opened(store_url) as store:
        send(store, first)
        store.resharding.carry_out(7, ["default"], alive_s=10)
        assert send(store, unique("reject")) == Appended(TAKEN, first.id)
        handled = [message_id for shard in range(7) for message_id in handle_all(store, SHARD._replace(number=shard))]

        assert handled == [first.id]
        assert send(store, unique("reject")).outcome is STORED


def test_rows_of_keys_that_are_free_are_removed_in_batches(store: SqlStore) -> None:
    append_unique(store, *(unique("reject", key=f"k{n}") for n in range(5)))
    append_unique(store, unique("reject", key="long", for_s=600))
    assert store.purge_unique_keys(100) == 0

    time_passes(store, 300)

    assert [store.purge_unique_keys(3), store.purge_unique_keys(3), store.purge_unique_keys(3)] == [3, 2, 0]
    assert query(store, "SELECT count(*) FROM {unique_key}") == [(1,)]


def test_a_key_whose_row_was_removed_is_held_by_its_message_all_the_same(store: SqlStore) -> None:
    first = unique("reject")
    send(store, first)
    time_passes(store, 300)
    assert store.purge_unique_keys(100) == 1

    assert send(store, unique("reject")) == Appended(TAKEN, first.id)


def test_the_clean_up_leaves_a_row_alone_that_a_sender_has(postgres: SqlStore) -> None:
    append_unique(postgres, unique("reject", key="free"), unique("reject", key="k"))
    time_passes(postgres, 300)
    engine = create_engine(postgres.url)
    with engine.connect() as caller:
        send(postgres, unique("queue", for_s=600), connection=caller)
        assert postgres.purge_unique_keys(100) == 1
        caller.rollback()
    engine.dispose()

    assert postgres.purge_unique_keys(100) == 1


def test_sends_without_unique_send_no_other_statements_than_before(postgres: SqlStore) -> None:
    seen: list[str] = []

    with before(postgres, "client", seen.append):
        append(postgres, message("a"))
        append(postgres, message("a"), message("b"))
        append(postgres, message("a", key="k"))
    with before(postgres, "drain", seen.append):
        turn_sends(postgres, message("b", key="out"))

    assert seen
    assert not [statement for statement in seen if "unique_key" in statement or "SAVEPOINT" in statement]
    assert not [statement for statement in seen if postgres._unique_keys._look.name in statement]


# Many at once


def serve(url: str, until: threading.Event, handled: list[tuple[str, Any]]) -> None:
    """Drain until told to stop; what was handled with which arguments, as the commits won."""
    with opened(url) as store:
        while not until.is_set() or store.pending(None, None, 1):
            with store.drain_session(SHARD) as session:
                while boxes := session.claim(100):
                    result = session.commit([commit_of(box) for box in boxes], last=True)
                    won = [box for box in boxes if box.address not in result.lost]
                    handled.extend((mail.id, json.loads(mail.args)["n"]) for box in won for mail in box.mail)
                    session.release(boxes)


def stress(
    url: str, rule: UniqueRule, senders: int, sends: int, **options: Any
) -> tuple[list[tuple[int, Appended]], list[tuple[str, int]]]:
    """Many senders of one key beside two drains: (number, outcome) of each send, (id, number) of each turn."""
    sent: list[tuple[int, Appended]] = []
    handled: list[tuple[str, int]] = []
    stop = threading.Event()

    def send_all(first: int) -> None:
        with opened(url) as store:
            for number in range(first, first + sends):
                sent.append((number, send(store, unique(rule, f'{{"n":{number}}}', **options))))

    drains = [Party(lambda: serve(url, stop, handled)) for _ in range(2)]
    parties = [Party(lambda first=n * sends: send_all(first)) for n in range(senders)]
    for party in parties:
        party.join()
    stop.set()
    for party in drains:
        party.join()
    return sent, handled


def handled_ids(turns: Sequence[tuple[str, int]]) -> list[str]:
    return sorted(message_id for message_id, _ in turns)


def stored_ids(sent: Sequence[tuple[int, Appended]]) -> list[str]:
    return sorted(one.message_id for _, one in sent if one.outcome is STORED)


@pytest.mark.parametrize("rule", RULES)
def test_many_senders_beside_two_drains_lose_and_double_nothing(durable: SqlStore, rule: UniqueRule) -> None:
    url = durable.url.render_as_string(hide_password=False)

    sent, handled = stress(url, rule, 4, 20, **({"delay_s": 0.01} if rule == "debounce" else {}))

    outcomes = {one.outcome for _, one in sent}
    assert outcomes <= ({STORED, TAKEN} if rule == "reject" else {STORED, JOINED})
    # Each message that was stored has one turn, and no other has any.
    assert handled_ids(handled) == stored_ids(sent)
    # What joined is answered by a turn, and the last arguments of each message by its own.
    assert {one.message_id for _, one in sent if one.outcome is JOINED} <= set(handled_ids(handled))
    by_message = {message_id: {n for n, one in sent if one.message_id == message_id} for message_id, _ in handled}
    assert all(number in by_message[message_id] for message_id, number in handled)


def test_many_senders_of_a_free_key_are_one_message(durable: SqlStore) -> None:
    url = durable.url.render_as_string(hide_password=False)
    outcomes: list[Appended] = []
    barrier = threading.Barrier(6)

    def one() -> None:
        with opened(url) as store:
            barrier.wait(30)
            outcomes.append(send(store, unique("reject")))

    for party in [Party(one) for _ in range(6)]:
        party.join()

    assert sorted(one.outcome for one in outcomes) == [STORED] + [TAKEN] * 5
    assert len({one.message_id for one in outcomes}) == 1
    assert len(pending_ids(durable)) == 1


def test_sends_of_many_keys_in_any_order_do_not_deadlock(durable: SqlStore) -> None:
    url = durable.url.render_as_string(hide_password=False)
    keys = [f"k{n}" for n in range(12)]
    outcomes: list[AppendOutcome] = []

    def one(order: Sequence[str]) -> None:
        with opened(url) as store:
            for _ in range(8):
                sent = [unique("replace", key=key) for key in order]
                outcomes.extend(appended.outcome for appended in append_unique(store, *sent))

    for party in [Party(lambda order=order: one(order)) for order in (keys, keys[::-1], keys[6:] + keys[:6])]:
        party.join()

    assert outcomes.count(STORED) == len(keys)
    assert len(pending_ids(durable)) == len(keys)
    eventually(lambda: len(handle_all(durable)) == len(keys))
