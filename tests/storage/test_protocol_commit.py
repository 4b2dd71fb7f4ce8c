"""Commits of drains that believe to hold the same entities: safe without any claim, and without deadlocks.

Every claim is granted here on purpose, so that nothing but the commit itself stands between two writers. Each body
also runs with one rule broken, and must then find lost updates, stale commits or deadlocks.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from entitycelery.address import Address
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import EntityCommit, Mail, Mailbox
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql import session as session_module
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.dialects.session_arguments import SERVER_SETTINGS
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.state import States
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Careful, Party, before_first, blocked, commits_by, rewrite
from tests.storage.support import SHARD, address, append, change, commit_of, ended, message, opened, query
from tests.waiting import eventually

Rule = Callable[[SqlStore], None]

BEGUN_OR_NEW = pytest.mark.parametrize("begun", [True, False], ids=["begun", "new"])
"""Whether the entities have a state before."""
IN_THE_MIDDLE = "SELECT 1 FROM {state} WHERE entity_id = 'm' FOR UPDATE"
FIRST_IN_THE_MIDDLE = "INSERT INTO {entity} (type, entity_id) VALUES ('Account', 'm')"


def without_claims(store: SqlStore) -> SqlStore:
    """Grant every claim to everybody, as if leases and locks had all failed."""
    locks: Any = store._locks
    locks.claim = lambda conn, token, keys: set(keys)
    locks.release = lambda conn, token, keys: None
    # What another drain is running would look as if that one had died of it.
    notes: Any = store._in_flight
    notes.suspects = lambda conn, token, ids: set()
    return store


def plus_one(mailbox: Mailbox, *mail: Mail) -> EntityCommit:
    """Turns that count themselves in the state, from the state as it was read; of the oldest if none is given."""
    before = msgspec.json.decode(mailbox.stored.state)["n"] if mailbox.stored.state else 0
    turns = [ended(one) for one in mail or mailbox.mail[:1]]
    return commit_of(mailbox, *turns, state=f'{{"n": {before + len(turns)}}}')


def counted(store: SqlStore, entity_id: str = "a") -> int:
    state = store.state(address(entity_id)).state
    return int(msgspec.json.decode(state)["n"]) if state else 0


def replies(store: SqlStore) -> int:
    return int(query(store, "SELECT count(*) FROM {reply}")[0][0])


# Versions and pending messages


def no_version_check(store: SqlStore) -> None:
    """Broken: a state is written whatever its version is."""
    has_era = store.dialect.name == "postgresql"
    rewrite(store, "WHERE s.version = g.version" if has_era else "WHERE state.version = excluded.version - 1", "")


def unchanged_states_are_not_written(store: SqlStore) -> None:
    """Broken: a turn that left its state alone only checks its message."""

    class Lazy(States):
        def write(self, conn: Connection, commits: Sequence[EntityCommit]) -> set[Address]:
            read = self.read(conn, [commit.address for commit in commits])
            same = [c for c in commits if c.address in read and _equal(read[c.address].state, c.state)]
            return super().write(conn, [c for c in commits if c not in same]) | {c.address for c in same}

    store._states = Lazy(store.dialect)
    commits_by(store, Careful)


def _equal(first: str | None, second: str | None) -> bool:
    return msgspec.json.decode(first or "null") == msgspec.json.decode(second or "null")


def handle_oldest(store: SqlStore) -> None:
    """A drain of its own that handles the oldest message."""
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(1)
        assert session.commit([plus_one(mailbox, mailbox.mail[0])], last=True).lost == frozenset()


def two_turns_from_one_state(store: SqlStore, late_state: str | None = None, *, begun: bool = True) -> CommitResult:
    """Two drains read one entity; the first commits one message of it, the second then another.

    `begun`: the entity has a state before.
    """
    without_claims(store)
    if begun:
        append(store, message("a"))
        handle_oldest(store)
    append(store, message("a"))
    append(store, message("a"))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        [early], [late] = first.claim(10), second.claim(10)
        assert first.commit([plus_one(early)], last=True).lost == frozenset()

        turn = ended(late.mail[1])
        counts = plus_one(late).state if late_state is None else late_state
        return second.commit([commit_of(late, turn, state=counts)], last=True)


@BEGUN_OR_NEW
def test_of_two_turns_from_one_state_the_second_loses(durable: SqlStore, *, begun: bool) -> None:
    result = two_turns_from_one_state(durable, begun=begun)

    assert result.lost == {address("a")}
    assert counted(durable) == replies(durable) == 1 + begun


def test_without_the_version_check_an_update_would_be_lost(durable: SqlStore) -> None:
    no_version_check(durable)

    result = two_turns_from_one_state(durable)

    assert result.lost == frozenset()
    assert counted(durable) == 2
    assert replies(durable) == 3


def test_a_turn_that_leaves_the_state_alone_loses_to_an_earlier_one_too(durable: SqlStore) -> None:
    assert two_turns_from_one_state(durable, late_state='{"n": 2}').lost == {address("a")}


def test_if_unchanged_states_were_not_written_two_turns_would_commit_from_one_state(durable: SqlStore) -> None:
    unchanged_states_are_not_written(durable)

    assert two_turns_from_one_state(durable, late_state='{"n": 2}').lost == frozenset()


def no_entity_row(store: SqlStore) -> None:
    """Broken: nothing tells that there is a state once that has another era than the first."""
    change(store, "DELETE FROM {entity}")


def late_first_turn(store: SqlStore, turns: int) -> CommitResult:
    """A drain that read an entity before it had a state commits once others have committed so many turns of it."""
    without_claims(store)
    append(store, *(message("a") for _ in range(turns + 1)))
    with store.drain_session(SHARD) as late:
        [read] = late.claim(turns + 1)
        for _ in range(turns):
            handle_oldest(store)

        return late.commit([plus_one(read, read.mail[-1])], last=True)


def slow_first_turn(store: SqlStore, turns: int, rule: Rule = lambda store: None) -> CommitResult:
    """The same, but the commit has begun before the others', and sees nothing of them."""
    without_claims(store)
    append(store, *(message("a") for _ in range(turns + 1)))
    with store.drain_session(SHARD) as slow:
        [read] = slow.claim(turns + 1)
        last = read.mail[-1]
        with held(store, "SELECT 1 FROM {message} WHERE id = :id FOR UPDATE", id=last.id):
            party = Party(lambda: slow.commit([plus_one(read, last)], last=True))
            eventually(lambda: blocked(store) == 1, every_s=0.002)
            for _ in range(turns):
                handle_oldest(store)
            rule(store)
        return party.join()


@pytest.mark.parametrize("turns", [1, 16, 17, 40])
def test_a_late_first_turn_loses_however_many_versions_there_have_been(durable: SqlStore, turns: int) -> None:
    assert late_first_turn(durable, turns).lost == {address("a")}
    assert counted(durable) == durable.state(address("a")).version == turns


@pytest.mark.parametrize("turns", [1, 17])
def test_a_first_turn_that_others_overtake_in_its_commit_loses(postgres: SqlStore, turns: int) -> None:
    assert slow_first_turn(postgres, turns).lost == {address("a")}
    assert counted(postgres) == postgres.state(address("a")).version == turns


def test_without_the_row_of_its_entity_an_overtaken_first_turn_would_begin_anew(postgres: SqlStore) -> None:
    assert slow_first_turn(postgres, 17, no_entity_row).lost == frozenset()


def test_a_state_that_was_deleted_by_hand_begins_anew(durable: SqlStore) -> None:
    append(durable, message("a"), message("a"))
    handle_oldest(durable)
    change(durable, "DELETE FROM {state}")
    handle_oldest(durable)

    assert counted(durable) == durable.state(address("a")).version == 1


def delete_meets_a_stale_turn(store: SqlStore, *, tombstone: bool) -> CommitResult:
    """One drain deletes the entity while another still works from its state."""
    without_claims(store)
    for _ in range(3):
        append(store, message("a"))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        [one], [stale] = first.claim(1), second.claim(10)
        first.commit([plus_one(one)], last=True)
        first.release([one])
        [two] = first.claim(1)
        first.commit([commit_of(two, state=None)], last=True)
        if not tombstone:
            change(store, "DELETE FROM {state}")

        return second.commit([commit_of(stale, ended(stale.mail[2]))], last=True)


def test_a_stale_turn_cannot_bring_a_deleted_entity_back(durable: SqlStore) -> None:
    assert delete_meets_a_stale_turn(durable, tombstone=True).lost == {address("a")}
    assert durable.state(address("a")).state is None


def test_without_its_tombstone_a_deleted_entity_would_come_back(durable: SqlStore) -> None:
    assert delete_meets_a_stale_turn(durable, tombstone=False).lost == frozenset()
    assert durable.state(address("a")).state is not None


def no_rev_check(store: SqlStore) -> None:
    """Broken: a message is pending if it is there, however it has changed."""
    rewrite(store, "SELECT id, rev FROM", "SELECT id, 0 FROM")
    if store.dialect.name == "postgresql":
        rewrite(store, "AND m.rev = r.rev", "")


def reschedule_meets_a_turn(store: SqlStore) -> CommitResult:
    """A message is put off while its turn runs."""
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        later = store.dialect.after("3600")
        change(store, "UPDATE {message} SET rev = rev + 1, due_at = {later}".replace("{later}", later))

        return session.commit([plus_one(mailbox)], last=True)


def test_a_reschedule_and_a_running_turn_do_not_both_win(durable: SqlStore) -> None:
    assert reschedule_meets_a_turn(durable).lost == {address("a")}
    assert (replies(durable), counted(durable), len(durable.pending(None, None, 10))) == (0, 0, 1)


def test_without_the_rev_check_a_rescheduled_message_would_be_handled_now(durable: SqlStore) -> None:
    no_rev_check(durable)

    assert reschedule_meets_a_turn(durable).lost == frozenset()
    assert replies(durable) == 1


# Deadlocks


@pytest.fixture
def contention(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The codes of contention that commits met; long lock time-outs, so that only deadlocks are found."""
    met: list[str] = []
    real = session_module.is_contention

    def noted(exc: Any) -> bool:
        found = real(exc)
        if found:
            met.append(str(getattr(exc.orig, "pgcode", exc)))
        return found

    monkeypatch.setattr(session_module, "is_contention", noted)
    monkeypatch.setitem(
        SERVER_SETTINGS, "drain", SERVER_SETTINGS["drain"].replace("lock_timeout=1000", "lock_timeout=20000")
    )
    return met


DEADLOCK = "40P01"


@contextmanager
def held(store: SqlStore, statement: str, **params: Any) -> Iterator[Connection]:
    """A transaction of somebody else that has locked what `statement` touches; undone at the end."""
    engine = create_engine(store.url)
    with engine.connect() as conn:
        conn.exec_driver_sql(store.dialect.sql(statement), params)
        yield conn
        conn.rollback()
    engine.dispose()


def crossing(store: SqlStore, lock: str, *commits: Callable[[], CommitResult], **params: Any) -> list[CommitResult]:
    """Commits that all wait in the middle of a statement for what `lock` holds, and then go on at once."""
    with held(store, lock, **params):
        parties = [Party(commit) for commit in commits]
        eventually(lambda: blocked(store) == len(parties))
    return [party.join() for party in parties]


def unsorted_states(store: SqlStore) -> None:
    """Broken: states are written in the order in which the turns ran."""
    rewrite(store, "ORDER BY type, entity_id", "")


def states_crosswise(store: SqlStore, *, begun: bool) -> None:
    """Two drains commit turns of the same entities in opposite orders, held up at the one in the middle."""
    without_claims(store)
    names = ["a", "m", "z"]
    if begun:
        change(
            store,
            "INSERT INTO {state} (type, entity_id, version, state_version) "
            "SELECT 'Account', i, 1, 1 FROM unnest(ARRAY['a', 'm', 'z']) AS u(i)",
        )
    for name in names * 2:
        append(store, message(name))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        boxes = {box.address.id: box for box in first.claim(10)}
        theirs = {box.address.id: box for box in second.claim(10)}
        forth = [commit_of(boxes[name], ended(boxes[name].mail[0])) for name in names]
        back = [commit_of(theirs[name], ended(theirs[name].mail[1])) for name in reversed(names)]

        results = crossing(
            store,
            IN_THE_MIDDLE if begun else FIRST_IN_THE_MIDDLE,
            lambda: first.commit(forth, last=True),
            lambda: second.commit(back, last=True),
        )

    assert sorted(len(result.lost) for result in results) == [0, 3]


@BEGUN_OR_NEW
def test_commits_that_meet_at_their_states_do_not_deadlock(
    postgres: SqlStore, contention: list[str], *, begun: bool
) -> None:
    states_crosswise(postgres, begun=begun)

    assert contention == []


@BEGUN_OR_NEW
def test_commits_with_unsorted_states_would_deadlock(postgres: SqlStore, contention: list[str], *, begun: bool) -> None:
    unsorted_states(postgres)

    states_crosswise(postgres, begun=begun)

    assert DEADLOCK in contention


class OneByOne(Commits):
    """Broken: messages are locked one after the other, in the order in which the turns ran."""

    def is_plain(self, commits: Sequence[EntityCommit]) -> bool:
        return False

    def check(
        self, conn: Connection, commits: Sequence[EntityCommit], others: Sequence[str] = ()
    ) -> list[EntityCommit]:
        alive = {turn.mail.id for c in commits for turn in c.turns if self.still_pending(conn, turn.mail)}
        return [c for c in commits if all(turn.mail.id in alive for turn in c.turns)]


def messages_crosswise(store: SqlStore) -> None:
    """Two drains commit the same messages in opposite orders, held up at the one in the middle."""
    without_claims(store)
    sent = sorted((message(name) for name in "amz"), key=lambda m: m.id)
    append(store, *sent)
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        boxes = sorted(first.claim(10), key=lambda box: box.mail[0].id)
        theirs = sorted(second.claim(10), key=lambda box: box.mail[0].id, reverse=True)

        results = crossing(
            store,
            "SELECT 1 FROM {message} WHERE id = :id FOR UPDATE",
            lambda: first.commit([commit_of(box) for box in boxes], last=True),
            lambda: second.commit([commit_of(box) for box in theirs], last=True),
            id=sent[1].id,
        )

    assert sorted(len(result.lost) for result in results) == [0, 3]
    assert replies(store) == 3


@pytest.mark.parametrize("way", [Commits, Careful])
def test_commits_that_meet_at_their_messages_do_not_deadlock(
    postgres: SqlStore, contention: list[str], way: type[Commits]
) -> None:
    commits_by(postgres, way)

    messages_crosswise(postgres)

    assert contention == []


def test_commits_that_lock_message_by_message_would_deadlock(postgres: SqlStore, contention: list[str]) -> None:
    commits_by(postgres, OneByOne)

    messages_crosswise(postgres)

    assert DEADLOCK in contention


class StatesFirst(Commits):
    """Broken: states are written before the messages are locked."""

    def is_plain(self, commits: Sequence[EntityCommit]) -> bool:
        return False

    def check(
        self, conn: Connection, commits: Sequence[EntityCommit], others: Sequence[str] = ()
    ) -> list[EntityCommit]:
        won = self._states.write(conn, commits)
        return super().check(conn, [commit for commit in commits if commit.address in won])


def message_and_state(store: SqlStore, way: type[Commits]) -> None:
    """Two drains commit the same turn, the first in its own way; both are held up at the state that the first meets."""
    without_claims(store)
    append(store, message("a"))
    change(store, "INSERT INTO {state} (type, entity_id, version, state_version) VALUES ('Account', 'a', 1, 1)")
    usual = store._commits
    commits_by(store, way)
    with store.drain_session(SHARD) as first:
        store._commits = usual
        with store.drain_session(SHARD) as second, held(store, "SELECT 1 FROM {state} FOR UPDATE"):
            [mine], [theirs] = first.claim(10), second.claim(10)
            parties = [Party(lambda: first.commit([commit_of(mine)], last=True))]
            eventually(lambda: blocked(store) == 1)
            parties.append(Party(lambda: second.commit([commit_of(theirs)], last=True)))
            eventually(lambda: blocked(store) == 2)
        for party in parties:
            party.join()

    assert replies(store) <= 1


@pytest.mark.parametrize("way", [Commits, Careful])
def test_commits_that_meet_at_message_and_state_do_not_deadlock(
    postgres: SqlStore, contention: list[str], way: type[Commits]
) -> None:
    message_and_state(postgres, way)

    assert contention == []
    assert replies(postgres) == 1


def test_a_commit_that_writes_states_first_would_deadlock(postgres: SqlStore, contention: list[str]) -> None:
    message_and_state(postgres, StatesFirst)

    assert DEADLOCK in contention


def unsorted_outgoing(store: SqlStore) -> None:
    """Broken: messages are inserted in the order in which they were sent."""
    rewrite(store, "ORDER BY s.id", "")


def outgoing_crosswise(store: SqlStore) -> None:
    """Two turns send the same keys in opposite orders, held up by a caller who is sending the one between."""
    append(store, message("first"))
    append(store, message("second"))
    keys = sorted((message("target", key=f"k{n}", operation="op") for n in range(3)), key=lambda m: m.id)
    with store.drain_session(SHARD) as one, store.drain_session(SHARD) as other:
        [first], [second] = one.claim(1), other.claim(1)
        engine = create_engine(store.url)
        with engine.connect() as caller:
            append(store, keys[1], connection=caller)
            parties = [
                Party(lambda: one.commit([commit_of(first, ended(first.mail[0], outgoing=keys))], last=True)),
                Party(lambda: other.commit([commit_of(second, ended(second.mail[0], outgoing=keys[::-1]))], last=True)),
            ]
            eventually(lambda: blocked(store) == 2)
            caller.commit()
        engine.dispose()
        for party in parties:
            assert party.join() == CommitResult(lost=frozenset(), refused={})

    assert store.pending_ids([key.id for key in keys]) == {key.id for key in keys}


def test_turns_that_send_the_same_keys_do_not_deadlock(postgres: SqlStore, contention: list[str]) -> None:
    outgoing_crosswise(postgres)

    assert contention == []


def test_turns_that_send_the_same_keys_unsorted_would_deadlock(postgres: SqlStore, contention: list[str]) -> None:
    unsorted_outgoing(postgres)

    outgoing_crosswise(postgres)

    assert DEADLOCK in contention


# Contention that no order prevents


def ping_pong(store: SqlStore) -> list[CommitResult]:
    """Two drains: each ends one key and sends the other's key again, both before either has committed."""
    keys = [message(name, key="k") for name in "ab"]
    append(store, *keys)
    with store.drain_session(SHARD) as one, store.drain_session(SHARD) as other:
        [first], [second] = one.claim(1), other.claim(1)
        again = {first.address: keys[1], second.address: keys[0]}
        if first.address == keys[1].address:
            again = {first.address: keys[0], second.address: keys[1]}

        def commit(session: SqlDrainSession, mailbox: Mailbox) -> CommitResult:
            turn = ended(mailbox.mail[0], outgoing=[again[mailbox.address]])
            return session.commit([commit_of(mailbox, turn)], last=True)

        parties: list[Party] = []

        def start_other() -> None:
            parties.append(Party(lambda: commit(other, second)))
            parties[0].until_done_or_blocked(store)

        with before_first(store, "drain", store._messages._insert, start_other):
            mine = commit(one, first)
        return [mine, parties[0].join()]


def test_two_turns_that_send_each_others_keys_again_both_commit(postgres: SqlStore, contention: list[str]) -> None:
    results = ping_pong(postgres)

    assert results == [CommitResult(lost=frozenset(), refused={})] * 2
    assert DEADLOCK in contention
    assert postgres.pending(None, None, 10) == []
    assert replies(postgres) == 2


def test_without_repeating_the_commit_such_turns_would_fail(
    postgres: SqlStore, contention: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "is_contention", lambda exc: False)

    with pytest.raises(StoreUnavailable, match="deadlock"):
        ping_pong(postgres)


def test_a_commit_behind_a_callers_open_send_gives_up_that_entity_alone(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = SERVER_SETTINGS["drain"].replace("lock_timeout=1000", "lock_timeout=100")
    monkeypatch.setitem(SERVER_SETTINGS, "drain", short)
    append(postgres, message("a"), message("b"))
    key = message("target", key="k")
    engine = create_engine(postgres.url)
    with engine.connect() as caller, postgres.drain_session(SHARD) as session:
        boxes = {box.address.id: box for box in session.claim(10)}
        append(postgres, key, connection=caller)

        result = session.commit(
            [commit_of(boxes["a"], ended(boxes["a"].mail[0], outgoing=[key])), commit_of(boxes["b"])], last=True
        )

        assert result == CommitResult(lost=frozenset({address("a")}), refused={})
        caller.commit()
    engine.dispose()
    assert (counted_version(postgres, "a"), counted_version(postgres, "b")) == (0, 1)
    assert postgres.mailbox_status(address("a"), SHARD).pending == 1


def counted_version(store: SqlStore, entity_id: str) -> int:
    return store.state(address(entity_id)).version


# All at once


def storm(url: str, rule: Rule | None, messages: int = 150) -> tuple[int, int, int]:
    """Four drains over the same twelve entities, nobody holding a claim; messages, replies, and turns counted."""
    names = [f"e{n}" for n in range(12)]
    rnd = random.Random(4711)
    sent = [message(rnd.choice(names)) for _ in range(messages)]

    together = threading.Barrier(4)

    def drain(seed: int) -> None:
        order = random.Random(seed)
        with opened(url) as store:
            if rule is not None:
                rule(store)
            with without_claims(store).drain_session(SHARD) as session:
                is_first = True
                while mailboxes := session.claim(40):
                    if is_first:
                        together.wait(30)
                    order.shuffle(mailboxes)
                    session.commit([plus_one(box, order.choice(box.mail)) for box in mailboxes], last=True)
                    session.release(mailboxes)
                    if is_first:
                        together.wait(30)
                    is_first = False

    with opened(url) as store:
        append(store, *sent)
        for party in [Party(lambda seed=seed: drain(seed)) for seed in range(4)]:
            party.join()
        return len(sent), replies(store), sum(counted(store, name) for name in names)


def test_four_drains_without_any_claim_apply_every_message_once(store_url: str, contention: list[str]) -> None:
    sent, replied, applied = storm(store_url, None)

    assert sent == replied == applied
    assert DEADLOCK not in contention


def test_four_drains_without_claims_and_versions_would_lose_updates(store_url: str, contention: list[str]) -> None:
    sent, replied, applied = storm(store_url, no_version_check)

    assert sent == replied
    assert applied < sent
