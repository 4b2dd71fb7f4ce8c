"""A key stays known when its message has ended, however it ended, and no send is stored where nobody looks.

Each body also runs with one rule broken, and must then find a key handled twice, forgotten or mixed up, or mail lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery import address as address_module
from entitycelery.address import ShardId, explicit_message_id, keyed_message_id, new_message_id
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.message import AppendOutcome, DeadLetterFilter, NewMessage, Status
from entitycelery.storage.port import closing_store
from entitycelery.storage.sql import dead_letter as dead_letter_module
from entitycelery.storage.sql import message as message_module
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Careful, before_first, commits_by, rewrite
from tests.storage.support import (
    CONFLICT,
    DUPLICATE,
    FULL,
    SHARD,
    SHARDS,
    STORED,
    address,
    append,
    change,
    commit_of,
    ended,
    handle_all,
    make_store,
    message,
    opened,
)

WAYS_TO_END = [Status.DONE, Status.FAILED, Status.EXPIRED, Status.DEAD]


def end_with(store: SqlStore, status: Status) -> None:
    """End all mail of the shard in this way."""
    with store.drain_session(SHARD) as session:
        mailboxes = session.claim(100)
        turns = [commit_of(box, *(ended(mail, status=status) for mail in box.mail)) for box in mailboxes]
        session.commit(turns, last=True)


# Ids


def test_ids_of_different_parts_differ_wherever_the_parts_are_cut() -> None:
    assert ids_of_shifted_parts() == 4


def test_parts_joined_without_their_lengths_would_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_module, "_framed", lambda *parts: "".join(parts).encode())

    assert ids_of_shifted_parts() == 1


def ids_of_shifted_parts() -> int:
    cut = [("Ab", "c", "d", "e"), ("A", "bc", "d", "e"), ("A", "b", "cd", "e"), ("A", "b", "c", "de")]
    return len({keyed_message_id("main", address(i, t), operation, key) for t, i, operation, key in cut})


def test_a_task_id_of_any_length_is_stored(durable: SqlStore) -> None:
    assert append(durable, message("a", id=explicit_message_id(LONG_ID), keyed=True)) == [STORED]
    assert len(handle_all(durable)) == 1


LONG_ID = "".join(new_message_id() for _ in range(300))


def test_a_long_task_id_that_is_not_hashed_would_not_be_stored(postgres: SqlStore) -> None:
    with pytest.raises(StoreUnavailable, match="index row"):
        append(postgres, message("a", id=LONG_ID, keyed=True))


# A key after its end


def forgets_the_fingerprint(found: Callable[..., AppendOutcome]) -> Callable[..., AppendOutcome]:
    """Broken: a finished key is known, but not what it stood for."""
    return lambda sent, row, *others: DUPLICATE if not row[3] else found(sent, row, *others)


def test_the_fingerprint_of_a_finished_key_is_compared_too(durable: SqlStore) -> None:
    assert finished_key_with_other_arguments(durable) == [CONFLICT]


def test_without_a_replys_fingerprint_other_arguments_would_look_like_a_duplicate(
    durable: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_module, "_outcome", forgets_the_fingerprint(message_module._outcome))

    assert finished_key_with_other_arguments(durable) == [DUPLICATE]


def finished_key_with_other_arguments(store: SqlStore) -> list[AppendOutcome]:
    append(store, message("a", '{"n":1}', key="k"))
    handle_all(store)
    return append(store, message("a", '{"n":2}', key="k"))


@pytest.mark.parametrize("status", WAYS_TO_END)
def test_an_end_without_a_reply_would_let_its_key_be_handled_again(durable: SqlStore, status: Status) -> None:
    commits_by(durable, Careful)
    durable._replies.write = lambda conn, turns: None  # type: ignore[method-assign]

    assert sent_again_after(durable, lambda: end_with(durable, status)) == (STORED, 1)


@pytest.mark.parametrize("status", WAYS_TO_END)
def test_every_end_of_a_turn_keeps_its_key_known(durable: SqlStore, status: Status) -> None:
    commits_by(durable, Careful)

    assert sent_again_after(durable, lambda: end_with(durable, status)) == (DUPLICATE, 0)


def test_a_cancel_without_a_reply_would_let_its_key_be_handled_again(durable: SqlStore) -> None:
    key = message("a", key="k")
    assert sent_again_after(durable, lambda: durable.cancel(key.id)) == (DUPLICATE, 0)

    change(durable, "DELETE FROM {reply}")
    durable._changes._answer = durable.dialect.sql("SELECT 1")

    assert sent_again_after(durable, lambda: durable.cancel(key.id)) == (STORED, 1)


def sent_again_after(store: SqlStore, end: Callable[[], object]) -> tuple[AppendOutcome, int]:
    """What a second send of a key is told after its first message has ended, and how often it is handled then."""
    append(store, message("a", key="k"))
    end()
    [outcome] = append(store, message("a", key="k"))
    return outcome, len(handle_all(store))


# The answer is one


def second_answer(store: SqlStore) -> int:
    """A turn ends a message that has its answer already, by whatever mishap; the version of its entity then."""
    sent = message("a")
    append(store, sent)
    answer = "INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, finished_at) VALUES "
    change(store, f"{answer} (:id, 'f', 'Account', 'a', 'add', 'done', {store.dialect.now})", id=sent.id)
    with store.drain_session(SHARD) as session:
        session.commit([commit_of(box) for box in session.claim(10)], last=True)
    return store.state(address("a")).version


@pytest.mark.parametrize("careful", [False, True])
def test_a_message_that_has_an_answer_changes_no_state_again(durable: SqlStore, careful: bool) -> None:
    if careful:
        commits_by(durable, Careful)

    assert second_answer(durable) == 0


def test_replies_that_yield_to_older_ones_would_let_a_message_count_twice(durable: SqlStore) -> None:
    commits_by(durable, Careful)
    replies: Any = durable._replies
    replies._write = replies._write + " ON CONFLICT (id) DO NOTHING"

    assert second_answer(durable) == 1


# Sends that are repeated because the first one's outcome is not known


def repeated(store: SqlStore, *, again: bool, nonces: tuple[str, str] = ("n", "n")) -> tuple[AppendOutcome, bool]:
    """A send is repeated after its message was handled; what it is told, and whether the message is pending again."""
    sent = message("a")
    store.append([sent], nonce=nonces[0])
    handle_all(store)
    [outcome] = store.append([sent], nonce=nonces[1], again=again)
    return outcome, store.pending_ids([sent.id]) == {sent.id}


def test_a_repeated_send_looks_whether_its_message_has_ended(durable: SqlStore) -> None:
    assert repeated(durable, again=True) == (DUPLICATE, False)


def test_a_repeated_send_that_only_inserts_would_store_its_message_again(durable: SqlStore) -> None:
    assert repeated(durable, again=False) == (STORED, True)


def told_twice(store: SqlStore, nonces: tuple[str, str]) -> list[AppendOutcome]:
    """What a send with a key is told, and its repetition, while the message is pending."""
    key = message("a", key="k")
    return [store.append([key], nonce=nonce, again=True)[0] for nonce in nonces]


def test_a_send_repeated_under_its_own_nonce_knows_its_message_again(durable: SqlStore) -> None:
    assert told_twice(durable, ("n", "n")) == [STORED, STORED]


def test_a_send_repeated_under_another_nonce_would_take_its_message_for_somebody_elses(durable: SqlStore) -> None:
    assert told_twice(durable, ("n", "m")) == [STORED, DUPLICATE]


def vanishing(store: SqlStore) -> list[AppendOutcome]:
    """A keyed send finds its key pending at the insert and gone at the look, with no reply."""
    key = message("a", key="k")
    append(store, key)
    with before_first(store, "client", store._messages._look, lambda: vanish(store)):
        return append(store, key)


def vanish(store: SqlStore) -> None:
    change(store, "DELETE FROM {message}")


def test_a_send_that_does_not_begin_anew_would_fail_where_its_key_vanishes(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vanishing(postgres) == [STORED]

    vanish(postgres)
    monkeypatch.setattr(message_module, "_ATTEMPTS", 1)

    with pytest.raises(StoreUnavailable, match="again and again"):
        vanishing(postgres)


# Dead letters


def buried_key(store: SqlStore) -> NewMessage:
    key = message("a", key="k")
    append(store, key)
    end_with(store, Status.DEAD)
    return key


def is_pending(store: SqlStore, key: NewMessage) -> bool:
    return store.pending_ids([key.id]) == {key.id}


def test_a_retried_letter_is_pending_again(durable: SqlStore) -> None:
    key = buried_key(durable)

    durable.retry_dead([key.id])

    assert is_pending(durable, key)


def test_a_retry_that_leaves_the_reply_would_lose_the_letter(durable: SqlStore) -> None:
    key = buried_key(durable)
    durable._dead_letters._delete_replies = durable.dialect.sql("SELECT 1")

    durable.retry_dead([key.id])

    assert not is_pending(durable, key)
    assert durable.dead_letters(DeadLetterFilter(), None, 0, 10) == []


def retry_that_fails(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> AppendOutcome:
    """A retry dies between the deletion of the reply and the insertion; what a send of the key is told then."""
    key = buried_key(store)
    with monkeypatch.context() as patch:
        patch.setattr(store._messages, "append", fail)
        with pytest.raises(InterruptedError):
            store.retry_dead([key.id])
    return append(store, key)[0]


def fail(*args: object) -> None:
    raise InterruptedError


def test_a_retry_that_fails_half_way_keeps_the_key_known(durable: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert retry_that_fails(durable, monkeypatch) is DUPLICATE


def test_a_retry_in_two_transactions_would_forget_the_key_half_way(
    durable: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_module, "transaction", lambda conn, begin: nullcontext())

    assert retry_that_fails(durable, monkeypatch) is STORED


def purged_and_sent_again(store: SqlStore) -> AppendOutcome:
    """What a send of a dead letter's key is told when the retention is over."""
    key = buried_key(store)
    change(store, "UPDATE {reply} SET finished_at = {then}".replace("{then}", store.dialect.after("-1000")))
    store.purge_replies(10.0, 100)
    return append(store, key)[0]


def test_the_key_of_a_dead_letter_outlives_the_retention(durable: SqlStore) -> None:
    assert purged_and_sent_again(durable) is DUPLICATE


def test_a_retention_that_spares_no_letter_would_forget_its_key(durable: SqlStore) -> None:
    rewrite(durable, "(status <> 'dead' OR", "(true OR")

    assert purged_and_sent_again(durable) is STORED


# Nothing is stored where nobody looks


@pytest.mark.parametrize("send", ["append", "append_and_ask"])
def test_a_sender_that_counts_other_shards_stores_nothing(store_url: str, send: str) -> None:
    with opened(store_url) as store, opened_by_a_stranger(store_url) as stranger:
        with pytest.raises(ConfigurationError, match="shards per group"):
            send_by(stranger, send)

        assert store.pending(None, None, 10) == []


@pytest.mark.parametrize("send", ["append", "append_and_ask"])
def test_an_insert_that_does_not_ask_for_the_shards_would_strand_mail(store_url: str, send: str) -> None:
    with opened(store_url) as store, opened_by_a_stranger(store_url) as stranger:
        rewrite(stranger, "value = ", "value <> ")
        send_by(stranger, send)

        assert [pending.shard for pending in store.pending(None, None, 10)] == [NOBODYS]
        assert [shard for n in range(SHARDS) for shard in handle_all(store, ShardId("default", n))] == []


def test_an_insert_in_one_round_trip_that_is_not_counted_would_lose_its_message_in_silence(postgres: SqlStore) -> None:
    with opened_by_a_stranger(postgres.url.render_as_string(hide_password=False)) as stranger:
        rewrite(stranger, "THEN 1 ELSE 0 END", "THEN 1 ELSE 1 END")

        assert stranger.append_and_ask(message("a", shard=NOBODYS), nonce="n") is False

    assert postgres.pending(None, None, 10) == []


NOBODYS = ShardId("default", SHARDS)


@contextmanager
def opened_by_a_stranger(url: str) -> Iterator[SqlStore]:
    """The store as somebody sees it who was told another number of shards."""
    with closing_store(lambda: make_store(url, shards=SHARDS + 1)) as stranger:
        assert isinstance(stranger, SqlStore)
        yield stranger


def send_by(store: SqlStore, send: str) -> None:
    if send == "append":
        append(store, message("a", shard=NOBODYS))
    else:
        store.append_and_ask(message("a", shard=NOBODYS), nonce="n")


# A full mailbox


def full_and_known(store: SqlStore) -> AppendOutcome:
    """What a send of a key is told that waits already in a mailbox without room."""
    append(store, message("a", key="k", capacity=1))
    return append(store, message("a", key="k", capacity=1))[0]


def test_a_known_key_is_no_matter_of_room(durable: SqlStore) -> None:
    assert full_and_known(durable) is DUPLICATE


def test_room_asked_for_before_the_key_would_refuse_a_duplicate(durable: SqlStore) -> None:
    class RoomFirst(Messages):
        def append(
            self, conn: Connection, messages: Sequence[NewMessage], nonce: str, *, again: bool = False
        ) -> list[AppendOutcome]:
            [one] = messages
            if one.capacity is not None and self.count(conn, one.address, one.shard, one.lock_key) >= one.capacity:
                return [FULL]
            return super().append(conn, messages, nonce, again=again)

    durable._sends._messages = RoomFirst(durable.dialect, durable._hashing)

    assert full_and_known(durable) is FULL
