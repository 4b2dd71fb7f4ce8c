"""A key that is a mutex has one holder, no send is lost, and nobody waits for ever, whatever meets whatever.

Each body also runs with one rule broken, and must then find two holders, a send that nobody answers, or a deadlock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import Appended, Mail, Mailbox, NewMessage, Status
from entitycelery.storage.key_rules import Window
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.statement import fetch
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.unique_key import UniqueKeys
from entitycelery.unique import UniqueRule
from tests.storage.interleave import Careful, Party, before, blocked, commits_by, explore, is_sent, rewrite
from tests.storage.support import (
    JOINED,
    STORED,
    TAKEN,
    address,
    append_unique,
    change,
    commit_of,
    ended,
    query,
    unique,
)
from tests.storage.test_protocol_commit import DEADLOCK, contention
from tests.waiting import eventually

__all__ = ["contention"]

Break = Callable[[SqlStore], None]
MEETINGS = 40


def keys_by(store: SqlStore, kind: type[UniqueKeys]) -> None:
    """Have the sends and commits of `store` treat keys in this way."""
    keys = kind(store.dialect, store._messages)
    store._unique_keys = store._dead_letters._unique_keys = keys
    store._sends._unique_keys = store._commits._unique_keys = keys


def shard(n: int) -> ShardId:
    return ShardId("default", n)


def sent(n: int, rule: UniqueRule, number: int, **options: Any) -> NewMessage:
    """A send of the key of the nth interleaving, in a shard of its own."""
    return unique(rule, f'{{"n":{number}}}', entity_id=f"e{n}", shard=shard(n), **options)


def send(store: SqlStore, message: NewMessage) -> Appended:
    [appended] = append_unique(store, message)
    return appended


Handled = list[tuple[Any, Any]]


def handle(store: SqlStore, n: int) -> Handled:
    """Work the shard of the nth key off; the id and the number of each turn that was committed, in order."""
    handled: Handled = []
    with store.drain_session(shard(n)) as session:
        while boxes := session.claim(10):
            result = session.commit([commit_of(box) for box in boxes], last=True)
            handled += [turn_of(mail) for box in boxes if box.address not in result.lost for mail in box.mail]
            session.release(boxes)
    return handled


def turn_of(mail: Mail) -> tuple[str, int]:
    return mail.id, json.loads(mail.args)["n"]


def pending(store: SqlStore, n: int) -> list[str]:
    found = query(store, "SELECT id FROM {message} WHERE entity_id = :entity_id ORDER BY seq", entity_id=f"e{n}")
    return [row[0] for row in found]


# One holder


def without_a_lock(store: SqlStore) -> None:
    """Broken: nothing guards the decision about a key."""

    class Unguarded(UniqueKeys):
        def _taken_rows(self, conn: Connection, names: Collection[str]) -> dict[str, tuple[float, Window]]:
            return {name: (0.0, Window(None, 0.0, 0.0)) for name in names}

    keys_by(store, Unguarded)


def look_first(store: SqlStore) -> None:
    """Broken: it is looked who holds the key before its row is locked, and not again."""

    class LookFirst(UniqueKeys):
        def _taken_rows(self, conn: Connection, names: Collection[str]) -> dict[str, tuple[float, Window]]:
            self._seen = fetch(conn, self._look, {"names": self._dialect.values(list(names))})
            return super()._taken_rows(conn, names)

        def _decide(self, conn: Connection, *args: Any) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("entitycelery.storage.sql.unique_key.fetch", lambda *_: self._seen)
                return super()._decide(conn, *args)

    keys_by(store, LookFirst)


def two_sends(store: SqlStore) -> list[list[str]]:
    """Two sends of one key, the first stopped at each of its statements; the ids that are pending afterwards."""
    holders: list[list[str]] = []

    def one(number: int) -> Callable[[int], Any]:
        return lambda n: send(store, sent(n, "reject", number))

    assert explore(store, "client", one(1), one(2), lambda n, *_: holders.append(pending(store, n))) >= 5
    return holders


def test_of_two_sends_of_a_key_one_holds_it(durable: SqlStore) -> None:
    assert {len(ids) for ids in two_sends(durable)} == {1}


@pytest.mark.parametrize("rule", [without_a_lock, look_first])
def test_a_key_whose_row_is_not_locked_before_the_look_would_have_two_holders(postgres: SqlStore, rule: Break) -> None:
    rule(postgres)

    assert max(len(ids) for ids in two_sends(postgres)) == 2


def letter_and_send(store: SqlStore) -> list[list[str]]:
    """The retry of a letter, stopped at each of its statements for a send of its key; what is pending then."""
    holders: list[list[str]] = []
    dead: dict[int, str] = {}
    for n in range(MEETINGS):
        dead[n] = send(store, sent(n, "reject", 1)).message_id
        with store.drain_session(shard(n)) as session:
            [box] = session.claim(10)
            session.commit([commit_of(box, ended(box.mail[0], status=Status.DEAD))], last=True)

    def check(n: int, *_: Any) -> None:
        holders.append(pending(store, n))

    retry = lambda n: store.retry_dead([dead[n]])  # noqa: E731 - beside its counterpart
    assert explore(store, "client", retry, lambda n: send(store, sent(n, "reject", 2)), check) >= 5
    return holders


def test_a_retried_letter_and_a_send_never_both_hold_the_key(durable: SqlStore) -> None:
    assert {len(ids) for ids in letter_and_send(durable)} == {1}


def test_a_letter_that_is_retried_whoever_has_its_key_would_make_two_holders(postgres: SqlStore) -> None:
    class Careless(UniqueKeys):
        def taken(self, conn: Connection, names: Collection[str]) -> set[str]:
            return set()

    keys_by(postgres, Careless)

    assert 2 in {len(ids) for ids in letter_and_send(postgres)}


# No send is lost


def answers(store: SqlStore, rule: UniqueRule) -> list[str]:
    """Let a send stop at each of its statements for the turn of its key, and that turn for a send; what went wrong."""
    wrong: list[str] = []
    held: dict[int, str] = {}

    def begin() -> None:
        for table in ("message", "reply", "state", "unique_key"):
            change(store, f"DELETE FROM {{{table}}}")  # noqa: S608 - constants
        for n in range(MEETINGS):
            held[n] = send(store, sent(n, rule, 1, delay_s=0)).message_id

    def check(n: int, appended: Appended, handled: Handled) -> None:
        turns = [*handled, *handle(store, n)]
        ids = [message_id for message_id, _ in turns]
        answer = [number for message_id, number in turns if message_id == appended.message_id]
        if answer != [2] or len(set(ids)) < len(ids) or held[n] not in ids or pending(store, n):
            wrong.append(f"{parties} at statement {n}: {appended.outcome} {turns}")

    second = lambda n: send(store, sent(n, rule, 2, delay_s=0))  # noqa: E731 - beside its counterpart
    parties = "a send with a turn in it"
    begin()
    assert explore(store, "client", second, lambda n: handle(store, n), check) >= 5
    parties = "a turn with a send in it"
    begin()
    assert explore(store, "drain", lambda n: handle(store, n), second, lambda n, a, b: check(n, b, a)) >= 5
    return wrong


@pytest.mark.parametrize("way", [Commits, Careful])
@pytest.mark.parametrize("rule", ["replace", "queue", "debounce"])
def test_every_send_is_answered_by_a_turn_that_sees_its_arguments(
    durable: SqlStore, rule: UniqueRule, way: type[Commits]
) -> None:
    commits_by(durable, way)

    assert answers(durable, rule) == []


def keep_the_rev(store: SqlStore) -> None:
    """Broken: who joins a message changes nothing that a commit checks."""
    rewrite(store, "SET rev = rev + 1, args", "SET args")


def test_a_send_that_joins_and_leaves_the_rev_would_be_lost_to_a_running_turn(durable: SqlStore) -> None:
    keep_the_rev(durable)

    assert answers(durable, "replace") != []


def not_locked(store: SqlStore) -> None:
    """Broken: the message that is joined is not locked, so that it may have ended when it is changed."""

    class Unlocked(UniqueKeys):
        def _are_free(self, conn: Connection, ids: Sequence[str]) -> bool:
            return True

    keys_by(store, Unlocked)


def test_a_send_that_joins_a_message_which_it_has_not_locked_would_be_lost(postgres: SqlStore) -> None:
    commits_by(postgres, Careful)
    not_locked(postgres)

    assert answers(postgres, "replace") != []


def queued_while_one_runs(store: SqlStore) -> tuple[list[str], frozenset[Any]]:
    """Sends that queue up behind a running turn: the ids that answer them, and what the turn's commit lost."""
    send(store, sent(0, "queue", 1))
    with store.drain_session(shard(0)) as session:
        [box] = session.claim(10)
        ids = [send(store, sent(0, "queue", number)).message_id for number in (2, 3, 4)]
        lost = session.commit([commit_of(box)], last=True).lost
    return ids, lost


def test_what_queues_up_leaves_the_running_turn_alone(durable: SqlStore) -> None:
    ids, lost = queued_while_one_runs(durable)

    assert lost == frozenset()
    assert len(set(ids)) == 1
    assert [message_id for message_id, _ in handle(durable, 0)] == ids[:1]


def test_if_nobody_knew_what_runs_a_queued_send_would_make_it_run_again(durable: SqlStore) -> None:
    rewrite(durable, "IS NOT NULL, EXISTS", "IS NOT NULL, 1 = 0 AND EXISTS")

    _, lost = queued_while_one_runs(durable)

    assert lost == {address("e0")}


# Beside a cancel, a reschedule and another send


@pytest.mark.parametrize("rule", ["replace", "queue"])
def test_a_send_and_a_cancel_leave_its_message_or_its_end(durable: SqlStore, rule: UniqueRule) -> None:
    held = {n: send(durable, sent(n, rule, 1)).message_id for n in range(MEETINGS)}

    def check(n: int, appended: Appended, _cancelled: Any) -> None:
        ended_by = {reply.id: reply.status for reply in durable.replies([held[n]]).values()}
        turns = handle(durable, n)
        if appended.outcome is JOINED:
            # Cancelled with what it joined, as somebody wanted who came later.
            assert (turns, ended_by) == ([], {held[n]: Status.CANCELLED})
        else:
            assert turns == [(appended.message_id, 2)]

    explored = explore(
        durable, "client", lambda n: send(durable, sent(n, rule, 2)), lambda n: durable.cancel(held[n]), check
    )
    assert explored >= 5


def test_two_sends_that_join_at_once_both_do(durable: SqlStore) -> None:
    held = {n: send(durable, sent(n, "replace", 1)).message_id for n in range(MEETINGS)}

    def check(n: int, mine: Appended, theirs: Appended) -> None:
        assert {mine, theirs} == {Appended(JOINED, held[n])}
        [(message_id, number)] = handle(durable, n)
        assert message_id == held[n]
        assert number in (2, 3)

    second, third = (lambda n, m=m: send(durable, sent(n, "replace", m)) for m in (2, 3))
    assert explore(durable, "client", second, third, check) >= 5


def rescheduled(store: SqlStore) -> list[Handled]:
    """A send beside a reschedule of the message that it joins; what is handled then, where both should count."""
    held = {n: send(store, sent(n, "replace", 1, delay_s=600)).message_id for n in range(MEETINGS)}
    handled: list[Handled] = []

    def check(n: int, appended: Appended, _changed: Any) -> None:
        assert appended == Appended(JOINED, held[n])
        handled.append([(number, message_id == held[n]) for message_id, number in handle(store, n)])

    soon = lambda n: store.reschedule(held[n], delay_s=0, deliver_at_epoch_s=None)  # noqa: E731
    assert explore(store, "client", lambda n: send(store, sent(n, "replace", 2)), soon, check) >= 5
    return handled


def test_a_send_leaves_what_it_does_not_change_as_it_is(durable: SqlStore) -> None:
    assert {tuple(turns) for turns in rescheduled(durable)} == {((2, True),)}


def test_a_send_that_trusts_what_it_saw_before_it_locked_would_undo_a_reschedule(postgres: SqlStore) -> None:
    class Trusting(UniqueKeys):
        def _are_free(self, conn: Connection, ids: Sequence[str]) -> bool:
            self._has_locked = super()._are_free(conn, ids)
            return self._has_locked

        def _decide(self, conn: Connection, *args: Any) -> Any:
            if not getattr(self, "_has_locked", False):
                self._decided = super()._decide(conn, *args)
            self._has_locked = False
            return self._decided

    keys_by(postgres, Trusting)

    assert () in {tuple(turns) for turns in rescheduled(postgres)}


# Outgoing mail


@pytest.mark.parametrize("rule", ["reject", "replace", "queue"])
def test_a_turns_send_and_another_send_are_one_holder(durable: SqlStore, rule: UniqueRule) -> None:
    """The outgoing mail of a turn, stopped at each statement for a send of the same key."""
    for n in range(MEETINGS):
        send(durable, sent(n, "queue", 0, key="sender"))

    def turn(n: int) -> CommitResult:
        with durable.drain_session(shard(n)) as session:
            [box] = session.claim(1)
            out = sent(n, rule, 1)
            return session.commit([commit_of(box, ended(box.mail[0], outgoing=[out]))], last=True)

    def check(n: int, result: CommitResult, theirs: Appended) -> None:
        assert isinstance(result, CommitResult), result
        assert result.lost == frozenset()
        assert len([one for one in pending(durable, n) if one != "sender"]) == (2 if result.refused else 1)
        if rule == "reject":
            assert sorted([bool(result.refused), theirs.outcome is TAKEN]) == [False, True]

    assert explore(durable, "drain", turn, lambda n: send(durable, sent(n, rule, 2)), check) >= 5


# Deadlocks


def own_key_again(store: SqlStore) -> tuple[CommitResult, Appended]:
    """A turn with a transaction of its own, which has its message locked, sends its key again while a send waits."""
    first, again = sent(0, "replace", 1), sent(0, "replace", 2)
    send(store, first)
    with store.drain_session(shard(0)) as session:
        [box] = session.claim(10)
        session.open_turn(box, box.mail[0])
        other = Party(lambda: send(store, sent(0, "replace", 3)))
        other.until_done_or_blocked(store)
        result = session.commit_turn(commit_of(box, ended(box.mail[0], outgoing=[again])))
    appended: Appended = other.join()
    return result, appended


def test_a_turn_that_sends_its_key_again_does_not_deadlock_with_a_send_that_waits(postgres: SqlStore) -> None:
    result, appended = own_key_again(postgres)

    assert (result.lost, result.refused) == (frozenset(), {})
    assert appended.outcome is JOINED
    assert handle(postgres, 0) == [(appended.message_id, 3)]


def test_a_send_that_waits_for_a_message_with_the_key_in_hand_would_deadlock(postgres: SqlStore) -> None:
    postgres._unique_keys._lock_free = postgres._unique_keys._lock

    try:
        result, _ = own_key_again(postgres)
    except StoreUnavailable as exc:
        assert "deadlock" in str(exc)  # noqa: PT017 - one of the two
    else:
        assert result.lost == {address("e0")}


def keys_crosswise(store: SqlStore) -> list[Any]:
    """Two sends of the same keys, one held up at the key that only it has, while the other wants what it has."""
    names = sorted((sent(0, "reject", 0, key=key).fingerprint, key) for key in ("a", "b", "c"))
    first, middle, last = (key for _, key in names)
    both = [sent(0, "queue", 1, key=key) for key in (first, last)]
    all_of_them = [sent(0, "queue", 2, key=key) for key in (last, middle, first)]
    engine = create_engine(store.url)
    with engine.connect() as caller:
        append_unique(store, sent(0, "queue", 3, key=middle), connection=caller)
        parties = [Party(lambda: append_unique(store, *all_of_them))]
        eventually(lambda: blocked(store) == 1)
        parties.append(Party(lambda: append_unique(store, *both)))
        eventually(lambda: blocked(store) == 2)
        caller.commit()
    engine.dispose()
    return [party.join() for party in parties]


def test_sends_of_the_same_keys_do_not_deadlock(postgres: SqlStore) -> None:
    results = keys_crosswise(postgres)

    assert [len(result) for result in results] == [3, 2]


def test_sends_that_lock_their_keys_in_any_order_would_deadlock(postgres: SqlStore) -> None:
    class Unsorted(UniqueKeys):
        def append(self, conn: Connection, messages: Sequence[NewMessage], nonce: str, **options: Any) -> Any:
            self._order = [message.fingerprint for message in messages]
            return super().append(conn, messages, nonce, **options)

        def _taken_rows(self, conn: Connection, names: Collection[str]) -> dict[str, tuple[float, Window]]:
            found: dict[str, tuple[float, Window]] = {}
            for name in list(self._order):
                found |= super()._taken_rows(conn, [name])
            return found

    keys_by(postgres, Unsorted)
    # Each send remembers an order of its own.
    usual = postgres.append_unique

    def own_keys(messages: Sequence[NewMessage], **options: Any) -> list[Appended]:
        keys_by(postgres, Unsorted)
        return usual(messages, **options)

    postgres.append_unique = own_keys  # type: ignore[method-assign]

    with pytest.raises(StoreUnavailable, match="deadlock"):
        keys_crosswise(postgres)


def ping_pong(store: SqlStore) -> list[CommitResult]:
    """Two turns, each of which gives the other's message new arguments, both before either has committed."""
    first, second = sent(0, "replace", 1), sent(1, "replace", 1)
    append_unique(store, first, second)
    with store.drain_session(shard(0)) as one, store.drain_session(shard(1)) as other:
        [mine], [theirs] = one.claim(1), other.claim(1)

        def commit(session: SqlDrainSession, box: Mailbox, n: int) -> CommitResult:
            turn = ended(box.mail[0], outgoing=[sent(n, "replace", 2)])
            return session.commit([commit_of(box, turn)], last=True)

        parties: list[Party] = []

        def start_other() -> None:
            parties.append(Party(lambda: commit(other, theirs, 0)))
            parties[0].until_done_or_blocked(store)

        results = [started_after_its_check(store, lambda: commit(one, mine, 1), start_other)]
        return [*results, parties[0].join()]


def started_after_its_check(store: SqlStore, commit: Callable[[], CommitResult], act: Callable[[], None]) -> Any:
    """Have `act` run once, right after the first statement of `commit` that locks messages."""
    locked: list[bool] = []

    def on_statement(statement: str) -> None:
        if locked == [True]:
            locked.append(False)
            act()
        elif not locked and is_sent(store._commits._pending, statement):
            locked.append(True)

    with before(store, "drain", on_statement):
        result = commit()
    assert locked == [True, False]
    return result


def test_two_turns_that_replace_each_others_arguments_do_not_deadlock(
    postgres: SqlStore, contention: list[str]
) -> None:
    results = ping_pong(postgres)

    # The one that was faster has changed the other's message, so that turn runs again.
    assert contention == []
    assert sorted(len(result.lost) for result in results) == [0, 1]
    numbers = [number for n in (0, 1) for _, number in handle(postgres, n)]
    assert numbers == [2]


def test_turns_that_lock_what_they_join_behind_their_own_messages_would_deadlock(
    postgres: SqlStore, contention: list[str]
) -> None:
    class Late(UniqueKeys):
        def targets(self, conn: Connection, messages: Sequence[NewMessage], ending: Collection[str]) -> list[str]:
            return []

    keys_by(postgres, Late)

    ping_pong(postgres)

    assert DEADLOCK in contention


def test_a_send_of_a_key_without_unique_waits_for_nobody_elses_key(postgres: SqlStore) -> None:
    engine = create_engine(postgres.url)
    with engine.connect() as caller:
        append_unique(postgres, sent(0, "reject", 1), connection=caller)

        assert send(postgres, sent(0, "reject", 2, key="other")).outcome is STORED

        caller.rollback()
    engine.dispose()
