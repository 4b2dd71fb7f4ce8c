"""Replies: announced to whoever waits, found without an announcement too, and kept for their time only."""

from __future__ import annotations

import select
import threading
import time
from contextlib import ExitStack

import msgspec
import pytest

from entitycelery.message import Status
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import ReplyWaiter
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Careful, Party, before, commits_by, is_sent
from tests.storage.support import (
    SHARD,
    append,
    change,
    claimed_ids,
    commit_of,
    ended,
    handle_all,
    message,
    opened,
    query,
)
from tests.waiting import eventually

LONG_S = 20.0


def wait_for(store: SqlStore, waiter: ReplyWaiter, message_id: str, waits: list[bool]) -> float:
    """Wait as an ask does until the reply is there; how long it took."""
    began = time.monotonic()
    while message_id not in store.replies([message_id]):
        waits.append(waiter.wait(LONG_S))
        assert time.monotonic() - began < LONG_S
    return time.monotonic() - began


def heard(waiter: ReplyWaiter, count: int) -> list[str]:
    """The next ids that are announced; an announcement travels beside the commit's answer, not before it."""
    ids: list[str] = []

    def all_heard() -> bool:
        ids.extend(waiter.take())
        return len(ids) >= count

    eventually(all_heard)
    return ids


# PostgreSQL announces


def test_an_announcement_wakes_whoever_waits_and_carries_the_id(postgres: SqlStore) -> None:
    with postgres.waiter() as waiter:
        sent = message(reply_to=waiter.channel)
        append(postgres, sent)
        waiter._next_poll_s = LONG_S  # type: ignore[attr-defined]
        drain = Party(lambda: handle_all(postgres))

        # With a poll that is 20 s away, only the announcement can end this before its deadline.
        assert waiter.wait(LONG_S) is True
        assert sent.id in postgres.replies([sent.id])

    assert drain.join() == [sent.id]


SMALL = '{"a":["b",1]}'


@pytest.mark.parametrize("way", [Commits, Careful])
@pytest.mark.parametrize(
    ("status", "result", "told"),
    [
        (Status.DONE, SMALL, SMALL),
        (Status.DONE, "null", "null"),
        (Status.DONE, f'"{"x" * 1_998}"', f'"{"x" * 1_998}"'),
        (Status.DONE, f'"{"x" * 1_999}"', None),
        (Status.DONE, f'"{"x" * 100_000}"', None),
        (Status.DONE, '"\u00fc"', None),
        (Status.FAILED, None, None),
        (Status.EXPIRED, None, None),
    ],
)
def test_a_small_result_is_announced_whole_and_others_are_left_to_be_read(
    postgres: SqlStore, way: type[Commits], status: Status, result: str | None, told: str | None
) -> None:
    commits_by(postgres, way)
    with postgres.waiter() as waiter, postgres.drain_session(SHARD) as session:
        # Ids may be whatever somebody likes to call his tasks.
        sent = message(id="a b: c", keyed=True, reply_to=waiter.channel)
        append(postgres, sent)
        [mailbox] = session.claim(10)
        turn = msgspec.structs.replace(ended(mailbox.mail[0], status=status), result=result)
        session.commit([commit_of(mailbox, turn)], last=True)

        assert heard(waiter, 1) == [sent.id]
        assert waiter.heard(sent.id) == told
        assert waiter.heard("another") is None
        stored = postgres.replies([sent.id])[sent.id].result
        assert msgspec.json.decode(stored or "null") == msgspec.json.decode(result or "null")


@pytest.mark.parametrize("way", [Commits, Careful])
def test_an_announcement_follows_the_commit(postgres: SqlStore, way: type[Commits]) -> None:
    commits_by(postgres, way)
    append(postgres, message(reply_to="somebody"))
    sent: list[str] = []

    with before(postgres, "drain", sent.append):
        handle_all(postgres)

    in_order = "; ".join(sent).split("; ")
    [announced] = [n for n, one in enumerate(in_order) if is_sent(postgres._commits._announce, one)]
    assert in_order.index("COMMIT") < announced


def test_the_ids_of_several_replies_are_taken_together(postgres: SqlStore) -> None:
    with postgres.waiter() as waiter:
        sent = [message(f"e{n}", reply_to=waiter.channel) for n in range(5)]
        append(postgres, *sent)
        handle_all(postgres)

        assert sorted(heard(waiter, 5)) == sorted(m.id for m in sent)
        assert waiter.take() == []


def test_a_waiter_hears_of_its_own_channel_only(postgres: SqlStore) -> None:
    with postgres.waiter() as mine, postgres.waiter() as other:
        assert mine.channel != other.channel
        append(postgres, message("a", reply_to=other.channel), message("b"))
        handle_all(postgres)

        assert len(heard(other, 1)) == 1
        assert mine.take() == []


def test_a_waiter_does_not_hear_what_its_connection_heard_for_another(postgres: SqlStore) -> None:
    with postgres.waiter() as first:
        channel = first.channel
        append(postgres, message(reply_to=channel))
        handle_all(postgres)
        # It has arrived, and nobody took it.
        assert select.select([first.fileno()], [], [], LONG_S)[0]

    with postgres.waiter() as second:
        assert second.channel == channel
        assert second.take() == []


def test_a_turn_with_its_own_transaction_is_announced_too(postgres: SqlStore) -> None:
    with postgres.waiter() as waiter, postgres.drain_session(SHARD) as session:
        sent = message(reply_to=waiter.channel)
        append(postgres, sent)
        [mailbox] = session.claim(10)
        session.open_turn(mailbox, mailbox.mail[0])
        session.commit_turn(commit_of(mailbox))

        assert waiter.wait(LONG_S) is True
        assert sent.id in postgres.replies([sent.id])


@pytest.mark.parametrize("status", list(Status))
def test_every_end_of_a_message_is_announced(postgres: SqlStore, status: Status) -> None:
    with postgres.waiter() as waiter, postgres.drain_session(SHARD) as session:
        append(postgres, message(reply_to=waiter.channel))
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, ended(mailbox.mail[0], status=status))], last=True)

        assert heard(waiter, 1) == claimed_ids([mailbox])


# Polling behind it


def test_a_reply_whose_announcement_was_lost_is_found_by_polling(postgres: SqlStore) -> None:
    with postgres.waiter() as waiter:
        sent = message(reply_to="nobody_listens_here")
        append(postgres, sent)
        waits: list[bool] = []
        waiting = Party(lambda: wait_for(postgres, waiter, sent.id, waits))
        handle_all(postgres)

        waiting.join()

    assert True not in waits


def test_a_waiter_polls_at_most_once_a_second(postgres: SqlStore) -> None:
    with postgres.waiter() as waiter:
        pauses = []
        for _ in range(6):
            pauses.append(waiter._next_poll_s)  # type: ignore[attr-defined]
            waiter.wait(0.001)

    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]


def test_waiters_beyond_the_listening_connections_poll(postgres_url: str) -> None:
    with opened(postgres_url, connections=2, timeout_s=0.2) as store, ExitStack() as stack:
        waiters = [stack.enter_context(store.waiter()) for _ in range(4)]
        sent = [message(f"e{n}", reply_to=waiter.channel) for n, waiter in enumerate(waiters)]
        append(store, *sent)
        waits: list[list[bool]] = [[] for _ in waiters]
        parties = [
            Party(lambda n=n: wait_for(store, waiters[n], sent[n].id, waits[n]))  # type: ignore[misc]
            for n in range(len(waiters))
        ]
        handle_all(store)
        for party in parties:
            party.join()

        assert [waiter.channel is not None for waiter in waiters] == [True, True, False, False]
        assert isinstance(waiters[3], PollingWaiter)


def test_a_listening_connection_is_given_back(postgres_url: str) -> None:
    with opened(postgres_url, connections=1, timeout_s=5) as store:
        for _ in range(3):
            with store.waiter() as waiter:
                assert waiter.channel is not None


def test_a_reply_is_found_by_polling_where_nothing_announces(store: SqlStore) -> None:
    with store.waiter() as waiter:
        sent = message(reply_to=waiter.channel)
        append(store, sent)
        waits: list[bool] = []
        waiting = Party(lambda: wait_for(store, waiter, sent.id, waits))
        handle_all(store)

        waiting.join()

    if store.dialect.name == "sqlite":
        assert (waiter.channel, waiter.fileno(), waiter.take()) == (None, None, [])
        assert True not in waits


# Retention


def old_replies(store: SqlStore, ages_s: list[float], status: Status = Status.DONE) -> list[str]:
    """Replies that ended so many seconds ago."""
    ids = []
    for age_s in ages_s:
        sent = message(f"e{len(ids)}")
        append(store, sent)
        with store.drain_session(SHARD) as session:
            [mailbox] = session.claim(1)
            session.commit([commit_of(mailbox, ended(mailbox.mail[0], status=status))], last=True)
        then = store.dialect.after(str(-age_s))
        change(store, "UPDATE {reply} SET finished_at = {then} WHERE id = :id".replace("{then}", then), id=sent.id)
        ids.append(sent.id)
    return ids


def test_replies_older_than_the_retention_are_purged_and_no_others(store: SqlStore) -> None:
    ids = old_replies(store, [5, 500, 50, 5_000])

    assert store.purge_replies(100, 10) == 2

    assert store.replies(ids).keys() == {ids[0], ids[2]}


def test_replies_are_purged_in_batches_oldest_first(store: SqlStore) -> None:
    ids = old_replies(store, [500, 400, 900, 700, 600])

    assert store.purge_replies(100, 2) == 2
    assert store.replies(ids).keys() == {ids[0], ids[1], ids[4]}
    assert [store.purge_replies(100, 2) for _ in range(3)] == [2, 1, 0]
    assert store.replies(ids) == {}


def test_replies_of_dead_letters_are_spared(store: SqlStore) -> None:
    ids = old_replies(store, [500, 600], Status.DEAD)

    assert store.purge_replies(100, 10) == 0
    assert store.replies(ids).keys() == set(ids)


def test_replies_of_discarded_letters_are_purged_like_others(store: SqlStore) -> None:
    old, young = old_replies(store, [500, 50], Status.DEAD)
    store.discard_dead([old, young])

    assert store.purge_replies(100, 10) == 1
    assert store.replies([old, young]).keys() == {young}


def test_a_purged_key_is_new(store: SqlStore) -> None:
    append(store, message(key="k"))
    handle_all(store)
    change(store, "UPDATE {reply} SET finished_at = {then}".replace("{then}", store.dialect.after("-500")))
    store.purge_replies(100, 10)

    append(store, message(args='{"other": 1}', key="k"))

    assert len(handle_all(store)) == 1


def test_pending_messages_are_never_purged(store: SqlStore) -> None:
    append(store, message("a"))

    assert store.purge_replies(0, 10) == 0

    assert len(handle_all(store)) == 1


def test_a_purge_beside_drains_takes_no_young_reply(durable: SqlStore) -> None:
    old = old_replies(durable, [500] * 10)
    young = [message(f"y{n}") for n in range(40)]
    done = threading.Event()

    def purge() -> int:
        purged = 0
        while not done.is_set() or durable.replies(old):
            purged += durable.purge_replies(100, 3)
        return purged

    purging = Party(purge)
    for one in young:
        append(durable, one)
        handle_all(durable)
    done.set()

    assert purging.join() == 10
    assert len(durable.replies([m.id for m in young])) == 40
    assert query(durable, "SELECT count(*) FROM {reply}") == [(40,)]
