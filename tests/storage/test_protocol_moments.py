"""When mail is due: what a look sees, and whom a commit tells of mail that is due soon."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import Ended, Mailbox, NewMessage, Retried
from entitycelery.storage.port import Ear
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Careful, before, commits_by, rewrite
from tests.storage.support import (
    OTHER_SHARD,
    SHARD,
    append,
    change,
    commit_of,
    ended,
    handle_all,
    make_store,
    message,
    opened,
    retried,
    shards_of,
)
from tests.waiting import eventually

EVER = -1e11
HORIZON_S = 2.0
A_DAY_S = 86_400.0


def every_shard_since(epoch_s: float) -> dict[ShardId, float]:
    return dict.fromkeys(shards_of("default"), epoch_s)


def moment_of(store: SqlStore, sent: NewMessage) -> float:
    """When a pending message is due, by its row."""
    [due_epoch_s] = [one.due_at_epoch_s for one in store.pending(None, None, 1_000) if one.id == sent.id]
    assert due_epoch_s is not None
    return due_epoch_s


# What a look sees


def test_a_look_sees_what_is_due_and_the_next_moment_within_the_horizon(store: SqlStore) -> None:
    old, young = message("a", deliver_at_epoch_s=1.0), message("b", deliver_at_epoch_s=2.0)
    soon, later = message("c", delay_s=1.5), message("d", delay_s=1.8, shard=OTHER_SHARD)
    append(store, old, young, soon, later, message("e", delay_s=A_DAY_S, shard=ShardId("default", 3)), message("f"))

    seen = store.due_moments(every_shard_since(EVER))

    assert seen.due == {SHARD: 2.0}
    assert seen.next_epoch_s == moment_of(store, soon)
    assert seen.next_epoch_s > seen.now_epoch_s


def test_moments_beyond_the_horizon_or_of_other_shards_are_not_seen(store: SqlStore) -> None:
    append(store, message("a", delay_s=HORIZON_S + 60), message("b", delay_s=1.0, shard=ShardId("other", 0)))

    seen = store.due_moments(every_shard_since(EVER))

    assert (seen.due, seen.next_epoch_s) == ({}, None)


def test_what_was_due_before_the_last_look_is_not_seen_again_unless_asked_for(store: SqlStore) -> None:
    append(store, message("a", deliver_at_epoch_s=5.0), message("b", deliver_at_epoch_s=-8e10, shard=OTHER_SHARD))

    assert store.due_moments(every_shard_since(5.0)).due == {SHARD: 5.0}
    assert store.due_moments(every_shard_since(5.001)).due == {}
    assert store.due_moments({SHARD: 6.0, OTHER_SHARD: EVER}).due == {OTHER_SHARD: -8e10}


def test_mail_behind_a_message_that_blocks_is_not_due_and_its_head_is_next(store: SqlStore) -> None:
    head = message("a")
    append(store, head)
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=1.0, blocking=True))], last=True)
    append(store, message("a", deliver_at_epoch_s=1.0))

    seen = store.due_moments(every_shard_since(EVER))

    assert (seen.due, seen.next_epoch_s) == ({}, moment_of(store, head))


def many_moments(store: SqlStore) -> dict[ShardId, float]:
    """A moment in each of many shards, five in a millisecond."""
    append(store, *(message(f"e{n}", delay_s=0.5 + 0.0002 * n, shard=ShardId("default", n)) for n in range(500)))
    return {one.shard: one.due_at_epoch_s or 0.0 for one in store.pending(None, None, 1_000)}


def all_looks(store: SqlStore, waiting: Mapping[ShardId, float]) -> dict[ShardId, float]:
    """Look again and again, each time for what has become due since; the moment of the look that saw each shard."""
    seen_at: dict[ShardId, float] = {}
    since = dict.fromkeys(waiting, min(waiting.values()))
    looks = 0

    def is_over() -> bool:
        nonlocal looks
        looks += 1
        seen = store.due_moments(since)
        since.update(dict.fromkeys(since, seen.now_epoch_s))
        for shard in seen.due:
            seen_at.setdefault(shard, seen.now_epoch_s)
        return seen.next_epoch_s is None

    eventually(is_over, every_s=0.0)
    assert looks > 5
    return seen_at


def test_every_moment_is_either_past_or_to_come_at_every_look(store: SqlStore) -> None:
    due = many_moments(store)

    seen_at = all_looks(store, due)

    assert seen_at.keys() == due.keys()
    assert [shard for shard, at in seen_at.items() if at < due[shard]] == []


def test_two_clocks_in_one_look_would_miss_moments(store: SqlStore) -> None:
    # The first question is answered by a clock that is a little behind: what a look on a busy machine comes to.
    if store.dialect.name == "sqlite":
        rewrite(store, "m.due_at <= c.now", "m.due_at <= c.now - 0.002")
    else:
        rewrite(store, "m.due_at <= c.now", "m.due_at <= c.now - interval '2 ms'")
    due = many_moments(store)

    assert all_looks(store, due).keys() != due.keys()


# Whom a commit tells: on PostgreSQL with locks of sessions


@contextmanager
def listening(store: SqlStore) -> Iterator[Ear]:
    ear = store.listen()
    assert ear is not None
    try:
        yield ear
    finally:
        ear.close()


def heard(ear: Ear) -> float:
    """The moment that is announced next."""
    return eventually(lambda: ear.take().due_epoch_s)


def was_told(store: SqlStore, ear: Ear) -> bool:
    """Whether any moment was announced so far."""
    change(store, "NOTIFY entity_conformance_ring, 'default.3'")
    told = False

    def has_rung() -> bool:
        nonlocal told
        announced = ear.take()
        told = told or announced.due_epoch_s is not None
        return bool(announced.shards)

    # Notifications come in the order of their commits, but not all of them at once.
    assert eventually(has_rung)
    return told


@pytest.fixture
def ear(postgres: SqlStore) -> Iterator[Ear]:
    with listening(postgres) as made:
        yield made


def test_a_send_that_is_due_soon_is_told_of_and_a_later_one_is_not(postgres: SqlStore, ear: Ear) -> None:
    append(postgres, message("a", delay_s=60.0))
    append(postgres, message("a", deliver_at_epoch_s=time.time() + 3600))
    append(postgres, message("a"))
    append(postgres, message("a", key="k", delay_s=4.0))
    assert not was_told(postgres, ear)

    append(postgres, soon := message("a", delay_s=1.9))

    assert heard(ear) == moment_of(postgres, soon)


def test_an_instant_that_is_near_or_past_is_told_of(postgres: SqlStore, ear: Ear) -> None:
    append(postgres, near := message("a", deliver_at_epoch_s=time.time() + 1.5))
    assert heard(ear) == moment_of(postgres, near)

    append(postgres, message("a", deliver_at_epoch_s=1.0))
    assert heard(ear) == 1.0


@pytest.mark.parametrize("key", [None, "k"])
def test_of_many_messages_of_one_send_the_first_moment_is_told(postgres: SqlStore, ear: Ear, key: str | None) -> None:
    mail = [message(f"e{n}", delay_s=1.5 - 0.1 * n, key=key) for n in range(5)]

    append(postgres, *mail, message("z", delay_s=A_DAY_S))

    assert heard(ear) == moment_of(postgres, mail[-1])
    append(postgres, last := message("z", deliver_at_epoch_s=7.0))
    assert heard(ear) == moment_of(postgres, last)


def test_a_send_is_told_of_after_its_commit_in_a_statement_of_its_own(postgres: SqlStore) -> None:
    sent: list[str] = []
    with before(postgres, "client", sent.append):
        append(postgres, message("a", delay_s=1.0, key="k"))

    telling = [n for n, statement in enumerate(sent) if postgres._moments._tell.name in statement]
    assert telling == [len(sent) - 1]
    assert sent[-2] == "COMMIT"


def test_a_send_that_is_due_much_later_asks_nothing_more_of_the_database(postgres: SqlStore) -> None:
    sent: list[str] = []
    with before(postgres, "client", sent.append):
        append(postgres, message("a", delay_s=HORIZON_S + 10))
        append(postgres, message("a", deliver_at_epoch_s=time.time() + 7 * A_DAY_S))

    assert len(sent) == 2


def test_a_reschedule_to_a_near_moment_is_told_of(postgres: SqlStore, ear: Ear) -> None:
    sent = message("a", delay_s=A_DAY_S)
    append(postgres, sent)

    postgres.reschedule(sent.id, delay_s=3600.0, deliver_at_epoch_s=None)
    postgres.reschedule(sent.id, delay_s=4.0, deliver_at_epoch_s=None)
    assert not was_told(postgres, ear)
    postgres.reschedule(sent.id, delay_s=1.0, deliver_at_epoch_s=None)
    assert heard(ear) == moment_of(postgres, sent)

    postgres.reschedule(sent.id, delay_s=None, deliver_at_epoch_s=time.time() + 1.5)
    assert heard(ear) == moment_of(postgres, sent)


Turns = Callable[[Mailbox], list[Ended | Retried]]
OUT = [message("out", delay_s=1.0), message("later", delay_s=A_DAY_S)]
TURNS: dict[str, Turns] = {
    "sends": lambda box: [ended(box.mail[0], outgoing=OUT)],
    "is put off": lambda box: [retried(box.mail[0], after_s=1.0)],
}


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("way", [Commits, Careful])
def test_a_turns_commit_tells_of_what_is_due_soon(
    postgres: SqlStore, ear: Ear, way: type[Commits], turns: Turns
) -> None:
    commits_by(postgres, way)
    append(postgres, message("a"))

    with postgres.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        assert not session.commit([commit_of(mailbox, *turns(mailbox))], last=True).lost

    assert heard(ear) == postgres.due_moments(every_shard_since(EVER)).next_epoch_s


@pytest.mark.parametrize("delay_s", [4.0, A_DAY_S])
def test_a_turns_commit_does_not_tell_of_what_is_due_later(postgres: SqlStore, ear: Ear, delay_s: float) -> None:
    append(postgres, message("a"), message("b"))

    with postgres.drain_session(SHARD) as session:
        first, second = session.claim(10)
        sends = ended(first.mail[0], outgoing=[message("out", delay_s=delay_s)])
        put_off = retried(second.mail[0], after_s=delay_s)
        session.commit([commit_of(first, sends)], last=False)
        session.commit([commit_of(second, put_off)], last=True)

    assert not was_told(postgres, ear)


def test_a_turn_with_a_transaction_of_its_own_tells_after_it(postgres: SqlStore, ear: Ear) -> None:
    append(postgres, message("a"))
    out = message("out", delay_s=1.0)

    with postgres.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        assert session.open_turn(mailbox, mailbox.mail[0]) is not None
        session.commit_turn(commit_of(mailbox, ended(mailbox.mail[0], outgoing=[out])))

    assert heard(ear) == moment_of(postgres, out)


def test_mail_on_a_callers_connection_is_told_of_with_his_commit(postgres: SqlStore, ear: Ear) -> None:
    engine = create_engine(postgres.url)
    undone, done = message("a", delay_s=1.0), message("b", delay_s=1.5)

    with engine.begin() as conn:
        append(postgres, undone, connection=conn)
        conn.rollback()
    with engine.begin() as conn:
        append(postgres, done, connection=conn)
        assert ear.take().due_epoch_s is None
    engine.dispose()

    # Delayed mail is not rung for at once.
    announced = eventually(lambda: (found := ear.take()).due_epoch_s and found)
    assert (announced.due_epoch_s, announced.shards) == (moment_of(postgres, done), frozenset())


def test_mail_on_a_callers_connection_is_told_of_though_his_transaction_may_take_longer(
    postgres: SqlStore, ear: Ear
) -> None:
    engine = create_engine(postgres.url)
    sent = message("a", delay_s=HORIZON_S + 2)

    with engine.begin() as conn:
        append(postgres, sent, connection=conn)
    engine.dispose()

    assert heard(ear) == moment_of(postgres, sent)


def test_senders_without_sessions_tell_runners_that_have_them(postgres_url: str, ear: Ear) -> None:
    with opened(postgres_url, lock_mode="rows") as sender:
        append(sender, sent := message("a", delay_s=1.0))

        assert sender.listen() is None
        assert heard(ear) == moment_of(sender, sent)


def test_what_anybody_notifies_is_no_moment(postgres: SqlStore, ear: Ear) -> None:
    change(postgres, "NOTIFY entity_conformance_due, 'now'")
    change(postgres, "NOTIFY entity_conformance_due")
    change(postgres, "NOTIFY entity_conformance_due, 'nan'")
    change(postgres, "NOTIFY entity_conformance_ring, 'everything'")
    append(postgres, message("a", deliver_at_epoch_s=9.5))

    announced = eventually(lambda: (found := ear.take()).due_epoch_s and found)
    assert (announced.due_epoch_s, announced.shards) == (9.5, frozenset())


def test_an_ear_whose_connection_has_ended_says_so(postgres: SqlStore, ear: Ear) -> None:
    change(
        postgres,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE '%% listen%%'",
    )

    def listen() -> None:
        # The server's last words come first.
        while select.select([ear.fileno()], [], [], 30)[0]:
            ear.take()

    with pytest.raises(StoreUnavailable, match="listening to commits"):
        listen()


def test_a_send_whose_telling_fails_is_stored(postgres: SqlStore, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(postgres, "pg_notify(", "no_such_function(")

    sent = message("a", delay_s=0.01)
    assert append(postgres, sent) == ["stored"]

    assert "no runner was told" in caplog.text
    eventually(lambda: handle_all(postgres) == [sent.id])


def test_clusters_hear_only_of_their_own(postgres_url: str, postgres: SqlStore, ear: Ear) -> None:
    other = make_store(postgres_url, cluster="other")
    other.schema.upgrade()
    try:
        append(other, message("a", delay_s=1.0, cluster="other"))
        append(postgres, message("a", deliver_at_epoch_s=4.0))

        assert heard(ear) == 4.0
    finally:
        other.close()
