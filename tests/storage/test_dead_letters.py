"""Retrying and discarding dead letters: once each, whoever else is at the same letter or sends its key again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import DeadLetterFilter, NewMessage, Status
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import explore, rewrite
from tests.storage.support import (
    DUPLICATE,
    SHARD,
    SHARDS,
    append,
    change,
    commit_of,
    ended,
    handle_all,
    make_store,
    message,
    opened,
    query,
)

MEETINGS = 20
ALL_SHARDS = [ShardId("default", number) for number in range(SHARDS)]
EVERYTHING = DeadLetterFilter()
LOCKED = "FROM entity_conformance.dead_letter WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE"


def buried(store: SqlStore, *messages: NewMessage) -> list[str]:
    """Have these messages die; their ids."""
    append(store, *messages)
    die(store, SHARD)
    return [one.id for one in messages]


def die(store: SqlStore, shard: ShardId) -> None:
    """Give up on all mail of a shard."""
    with store.drain_session(shard) as session:
        boxes = session.claim(200)
        turns = [[ended(mail, status=Status.DEAD) for mail in box.mail] for box in boxes]
        session.commit([commit_of(box, *dead) for box, dead in zip(boxes, turns, strict=True)], last=True)


def keyed(count: int) -> list[NewMessage]:
    return [message(f"a{n}", key=f"k{n}") for n in range(count)]


def places(store: SqlStore, message_id: str) -> tuple[int, int, int]:
    """How many rows of it are pending, answered and dead."""
    counts = [
        query(store, f"SELECT count(*) FROM {{{table}}} WHERE id = :id", id=message_id)[0][0]  # noqa: S608 - constants
        for table in ("message", "reply", "dead_letter")
    ]
    return counts[0], counts[1], counts[2]


PENDING, DONE, DEAD, ANSWERED = (1, 0, 0), (0, 1, 0), (0, 1, 1), (0, 1, 0)


# Without anybody else


def test_a_retried_letter_is_the_same_message_as_if_never_tried(store: SqlStore) -> None:
    sent = message("a", '{"n": 1}', key="k", sender="Account/b")
    buried(store, sent)
    change(store, "UPDATE {dead_letter} SET attempt = 4, crashes = 2")

    [again] = store.retry_dead([sent.id])

    assert (again.id, again.fingerprint, again.shard, again.lock_key) == (
        sent.id,
        sent.fingerprint,
        shard_of_pending(store),
        sent.lock_key,
    )
    assert query(store, "SELECT attempt, crashes, rev, sender, fingerprint, lock_key FROM {message}") == [
        (0, 0, 0, "Account/b", sent.fingerprint, sent.lock_key)
    ]
    [pending] = store.pending(None, None, 10)
    assert pending.args.replace(" ", "") == '{"n":1}'
    assert places(store, sent.id) == PENDING


def shard_of_pending(store: SqlStore) -> ShardId:
    return store.pending(None, None, 10)[0].shard


def test_a_letter_moves_to_the_shard_that_its_entity_has_now(sqlite_url: str) -> None:
    with opened(sqlite_url, shards=4) as store:
        [dead] = buried(store, message("a"))
        change(store, "UPDATE {meta} SET value = '16' WHERE name = 'shards_per_group'")
    with closing(make_store(sqlite_url, shards=16)) as resharded:
        [again] = resharded.retry_dead([dead])

        assert again.shard.number == 3
        assert resharded.pending(None, again.shard, 10)[0].id == dead


def test_retried_letters_keep_their_order_and_come_behind_what_waits(store: SqlStore) -> None:
    ids = buried(store, *(message("a") for _ in range(3)))
    waiting = message("a")
    append(store, waiting)

    assert [again.id for again in store.retry_dead(ids[::-1])] == ids

    assert [pending.id for pending in store.pending(None, None, 10)] == [waiting.id, *ids]


def test_no_two_letters_have_the_same_place(store: SqlStore) -> None:
    # Each message is gone before the next is sent.
    letters = [*buried(store, message("a")), *buried(store, message("b"))]

    [first] = store.dead_letters(EVERYTHING, None, 0, 1)
    [second] = store.dead_letters(EVERYTHING, None, first.seq, 1)

    assert [first.id, second.id] == letters


def test_only_letters_that_are_there_are_retried_and_discarded(store: SqlStore) -> None:
    [one, two, three] = buried(store, message("a"), message("b"), message("c"))

    assert [again.id for again in store.retry_dead([one, "nobody"])] == [one]
    assert store.retry_dead([one]) == []
    assert store.discard_dead([one, two, "nobody"]) == [two]
    assert store.discard_dead([two]) == []
    assert store.retry_dead([]) == []

    assert [places(store, each) for each in (one, two, three)] == [PENDING, ANSWERED, DEAD]
    assert store.dead_letter_ids(EVERYTHING, None) == [three]


def test_a_letter_that_dies_again_can_be_retried_again(store: SqlStore) -> None:
    [dead] = buried(store, message("a"))
    for _ in range(3):
        store.retry_dead([dead])
        die(store, shard_of_pending(store))
        assert places(store, dead) == DEAD


def test_a_retry_that_cannot_be_stored_leaves_the_letters(store: SqlStore) -> None:
    ids = buried(store, message("a"), message("b"))
    forged = message("a", '{"other": 1}')
    append(store, forged)
    change(store, "UPDATE {message} SET id = :id", id=ids[0])

    with pytest.raises(StoreUnavailable, match=f"than the dead letter {ids[0]} is pending"):
        store.retry_dead(ids)

    assert store.dead_letter_ids(EVERYTHING, None) == ids
    assert store.replies(ids).keys() == set(ids)


# Beside others

Act = Callable[[SqlStore, str], Any]


def retry(store: SqlStore, message_id: str) -> list[str]:
    return [again.id for again in store.retry_dead([message_id])]


def retry_and_handle(store: SqlStore, message_id: str) -> list[str]:
    """A retry whose message is done before anybody else goes on."""
    retried = retry(store, message_id)
    for shard in ALL_SHARDS:
        handle_all(store, shard)
    return retried


def discard(store: SqlStore, message_id: str) -> list[str]:
    return store.discard_dead([message_id])


def meet(store: SqlStore, first: Act, second: Act, check: Callable[[str, Any, Any], None]) -> None:
    """Have both come to one letter, and `second` wholly before each statement of `first`."""
    ids = buried(store, *keyed(MEETINGS))
    met = explore(
        store,
        "client",
        lambda n: first(store, ids[n]),
        lambda n: second(store, ids[n]),
        lambda n, one, other: check(ids[n], one, other),
    )
    assert met >= 3


@pytest.mark.parametrize(
    ("first", "second"),
    [(retry, retry), (retry, discard), (discard, retry), (discard, discard)],
    ids=lambda act: act.__name__,
)
def test_of_two_who_come_to_one_letter_one_finds_it(durable: SqlStore, first: Act, second: Act) -> None:
    def check(dead: str, one: Any, other: Any) -> None:
        assert sorted((one, other)) == [[], [dead]]
        winner = first if one else second
        assert places(durable, dead) == (PENDING if winner is retry else ANSWERED)

    meet(durable, first, second, check)


def handled_once(store: SqlStore) -> Callable[[str, Any, Any], None]:
    def check(dead: str, one: Any, other: Any) -> None:
        assert sorted((one, other)) == [[], [dead]]
        retry_and_handle(store, dead)
        assert places(store, dead) == DONE
        # Dying was one turn, the retry another.
        [(version,)] = query(
            store,
            "SELECT s.version FROM {state} AS s JOIN {reply} AS r ON r.entity_id = s.entity_id WHERE r.id = :id",
            id=dead,
        )
        assert version == 2

    return check


def test_a_letter_is_not_retried_again_when_its_retry_is_done(durable: SqlStore) -> None:
    meet(durable, retry, retry_and_handle, handled_once(durable))


def test_without_the_row_lock_a_letter_would_be_handled_twice(postgres: SqlStore) -> None:
    rewrite(postgres, LOCKED, LOCKED.removesuffix(" FOR UPDATE"))

    with pytest.raises(AssertionError):
        meet(postgres, retry, retry_and_handle, handled_once(postgres))


def test_a_key_that_is_sent_again_while_its_letter_is_retried_is_not_doubled(durable: SqlStore) -> None:
    messages = {one.id: one for one in keyed(MEETINGS)}

    def send_again(store: SqlStore, message_id: str) -> Any:
        return append(store, messages[message_id])

    def check(dead: str, one: Any, other: Any) -> None:
        assert sorted((one, other)) == sorted(([DUPLICATE], [dead]))
        assert places(durable, dead) == PENDING

    meet(durable, retry, send_again, check)
    for table in ("message", "reply", "dead_letter"):
        change(durable, f"DELETE FROM {{{table}}}")  # noqa: S608 - constants
    meet(durable, send_again, retry, check)


def test_many_retries_at_once_neither_deadlock_nor_double(durable: SqlStore) -> None:
    ids = buried(durable, *keyed(MEETINGS))

    def forwards(_: int) -> list[str]:
        return [again.id for again in durable.retry_dead(ids)]

    def backwards(_: int) -> list[str]:
        return [again.id for again in durable.retry_dead(ids[::-1])]

    def check(_: int, one: Any, other: Any) -> None:
        assert sorted((len(one), len(other))) == [0, MEETINGS]
        for shard in ALL_SHARDS:
            die(durable, shard)

    assert explore(durable, "client", forwards, backwards, check) >= 4
