"""A key is one message, whatever the sends and turns of it do at the same moment.

Each body also runs with one rule broken, and must then find a finished key stored again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import AppendOutcome, NewMessage
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.statement import fetch, run
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Careful, Party, before_first, commits_by, explore, rewrite
from tests.storage.support import (
    CONFLICT,
    DUPLICATE,
    STORED,
    append,
    change,
    commit_of,
    ended,
    handle_all,
    message,
    opened,
    query,
)

Break = Callable[[SqlStore], None]


def one_statement(store: SqlStore) -> None:
    """Broken: one INSERT that looks for the reply itself, in its own snapshot."""
    looked = "AND NOT EXISTS (SELECT 1 FROM {reply} AS r WHERE r.id = s.id) ORDER BY s.id"
    rewrite(store, "ORDER BY s.id", looked.replace("{reply}", store.dialect.table("reply")))
    never_look(store)


def check_first(store: SqlStore) -> None:
    """Broken: a look at the replies before the insert, in the same transaction."""

    among = store.dialect.any_of("id", "ids")
    replied = store.dialect.sql("SELECT 1 FROM {reply} WHERE {among}", among=among)

    class CheckFirst(Messages):
        def _append_keyed(
            self, conn: Connection, messages: Sequence[NewMessage], nonce: str
        ) -> tuple[Sequence[NewMessage], list[AppendOutcome]]:
            ids = self._dialect.values([m.id for m in messages])
            if fetch(conn, replied, {"ids": ids}):
                return messages, [DUPLICATE] * len(messages)
            run(conn, self._insert, self._inserted(messages, nonce)[1])
            return messages, [STORED] * len(messages)

    store._sends._messages = CheckFirst(store.dialect, store._hashing)


def check_before(store: SqlStore) -> None:
    """Broken: a look at the replies in a statement of its own, before the transaction that inserts."""
    never_look(store)
    append_to = store.append

    def checked(messages: Sequence[NewMessage], **options: Any) -> list[AppendOutcome]:
        if store.replies([m.id for m in messages]):
            return [DUPLICATE] * len(messages)
        return append_to(messages, **options)

    store.append = checked  # type: ignore[method-assign]


def strict_isolation(store: SqlStore) -> None:
    """Broken: the store's own transactions look at everything as it was when they began."""
    store.dialect.begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"


def never_look(store: SqlStore) -> None:
    """Broken: the unique id of pending messages alone."""
    store._messages._withdraw_finished = store.dialect.sql("SELECT 1")


def doubled(store: SqlStore) -> set[str]:
    """Keys that are finished and pending again: a drain would handle them twice."""
    rows = query(store, "SELECT m.id FROM {message} AS m JOIN {reply} AS r ON r.id = m.id")
    return {row[0] for row in rows}


def keyed(n: int, args: str = "{}", **options: Any) -> NewMessage:
    """The key of the nth interleaving, in a shard of its own."""
    return message(f"e{n}", args, key="k", shard=ShardId("default", n), **options)


def handle_key(store: SqlStore, n: int) -> None:
    """Work the shard of the nth key off; a doubled key, whose second end cannot be stored, is left to the check."""
    with store.drain_session(keyed(n).shard) as session:
        while mailboxes := session.claim(10):
            if session.commit([commit_of(mailbox) for mailbox in mailboxes], last=True).unstorable:
                return
            session.release(mailboxes)


def interleaved(store: SqlStore) -> list[str]:
    """Let a send stop at each of its statements for the turn of its key, and that turn for a send; what went wrong."""
    wrong: list[str] = []

    def check(n: int, _mine: Any, _theirs: Any) -> None:
        if keyed(n).id in doubled(store):
            wrong.append(f"doubled by {parties} at statement {n}")
            return
        handle_key(store, n)
        if store.state(keyed(n).address).version != 1 or store.pending_ids([keyed(n).id]):
            wrong.append(f"lost or doubled by {parties} at statement {n}")

    parties = "a send with a turn in it"
    append(store, *(keyed(n) for n in range(40)))
    assert explore(store, "client", lambda n: append(store, keyed(n)), lambda n: handle_key(store, n), check) >= 3

    parties = "a turn with a send in it"
    change(store, "DELETE FROM {message}")
    change(store, "DELETE FROM {reply}")
    change(store, "DELETE FROM {state}")
    append(store, *(keyed(n) for n in range(40)))
    assert explore(store, "drain", lambda n: handle_key(store, n), lambda n: append(store, keyed(n)), check) >= 5
    return wrong


@pytest.mark.parametrize("way", [Commits, Careful])
def test_a_send_and_the_turn_of_its_key_never_double_it(durable: SqlStore, way: type[Commits]) -> None:
    commits_by(durable, way)

    assert interleaved(durable) == []


@pytest.mark.parametrize("rule", [one_statement, check_first, check_before, strict_isolation, never_look])
def test_other_ways_to_look_for_a_finished_key_would_double_it(postgres: SqlStore, rule: Break) -> None:
    commits_by(postgres, Careful)
    rule(postgres)

    assert interleaved(postgres) != []


@pytest.mark.parametrize("rule", [check_before, never_look])
def test_a_finished_key_would_double_on_sqlite_too_if_nobody_looked(sqlite_store: SqlStore, rule: Break) -> None:
    rule(sqlite_store)

    assert interleaved(sqlite_store) != []


def two_sends(store: SqlStore) -> list[Any]:
    """Two sends of one key with other arguments, the first stopped at each of its statements; the pairs of outcomes."""
    pairs: list[Any] = []

    def send(args: str) -> Callable[[int], Any]:
        return lambda n: append(store, keyed(n, args))[0]

    assert explore(store, "client", send('{"n":1}'), send('{"n":2}'), lambda n, *both: pairs.append(both)) >= 3
    return pairs


def test_of_two_sends_of_one_key_one_is_stored_and_the_other_is_told(durable: SqlStore) -> None:
    pairs = two_sends(durable)

    assert all(sorted(pair) == [CONFLICT, STORED] for pair in pairs)
    ids = [keyed(n).id for n in range(len(pairs))]
    assert durable.pending_ids(ids) == set(ids)


def test_without_the_nonce_both_of_two_sends_would_believe_that_theirs_was_stored(durable: SqlStore) -> None:
    rewrite(durable, "coalesce(nonce = ", "coalesce(true OR nonce = ")

    first, second = append(durable, keyed(0)), append(durable, keyed(0))

    assert (first, second) == ([STORED], [STORED])


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_send_waits_for_the_callers_transaction_that_holds_its_key(postgres: SqlStore, end: str) -> None:
    engine = create_engine(postgres.url)
    with engine.connect() as caller:
        append(postgres, keyed(0, '{"n":1}'), connection=caller)
        other = Party(lambda: append(postgres, keyed(0, '{"n":2}')))
        other.until_done_or_blocked(postgres)
        assert not other.is_done

        getattr(caller, end)()

    assert other.join() == [CONFLICT if end == "commit" else STORED]
    engine.dispose()


def test_a_send_whose_message_vanishes_under_it_begins_anew(postgres: SqlStore) -> None:
    append(postgres, keyed(0))
    gone = "DELETE FROM {message}"

    with before_first(postgres, "client", postgres._messages._look, lambda: change(postgres, gone)):
        outcome = append(postgres, keyed(0))

    assert outcome == [STORED]
    assert postgres.pending_ids([keyed(0).id]) == {keyed(0).id}


def stale_snapshot(store: SqlStore, level: str) -> None:
    """A send in a caller's transaction that began to read before the turn of its key ended."""
    append(store, keyed(0))
    engine = create_engine(store.url, isolation_level=level)
    with engine.connect() as caller:
        caller.execute(text("SELECT 1"))
        handle_key(store, 0)
        append(store, keyed(0), connection=caller)
        caller.commit()
    engine.dispose()


def test_a_key_is_seen_finished_in_a_callers_older_transaction(postgres: SqlStore) -> None:
    stale_snapshot(postgres, "READ COMMITTED")

    assert doubled(postgres) == set()


def test_a_stricter_isolation_level_would_double_a_key_and_is_refused(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="READ COMMITTED"):
        stale_snapshot(postgres, "REPEATABLE READ")

    monkeypatch.setattr(postgres.dialect, "check_caller", lambda conn, keyed: None)
    change(postgres, "DELETE FROM {reply}")
    stale_snapshot(postgres, "REPEATABLE READ")

    assert doubled(postgres) == {keyed(0).id}


def outgoing_meets_end(store: SqlStore) -> list[str]:
    """A turn that sends a key, stopped at each statement for the turn that ends that key; what went wrong."""
    wrong: list[str] = []
    sender = ShardId("default", 100)

    def send(n: int) -> None:
        with store.drain_session(sender) as session:
            [mailbox] = session.claim(10)
            session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=[keyed(n)]))], last=True)

    def check(n: int, mine: Any, _theirs: Any) -> None:
        if keyed(n).id in doubled(store) or isinstance(mine, Exception):
            wrong.append(f"doubled at statement {n}")
        append(store, message("sender", shard=sender))

    append(store, *(keyed(n) for n in range(40)))
    append(store, message("sender", shard=sender))
    assert explore(store, "drain", send, lambda n: handle_key(store, n), check) >= 5
    return wrong


def test_a_turns_outgoing_key_never_doubles_the_message_that_ends_meanwhile(durable: SqlStore) -> None:
    assert outgoing_meets_end(durable) == []


def test_outgoing_keys_would_double_if_nobody_looked(postgres: SqlStore) -> None:
    never_look(postgres)

    assert outgoing_meets_end(postgres) != []


def test_keys_sent_by_many_while_many_drain_are_handled_once(durable: SqlStore) -> None:
    url = durable.url.render_as_string(hide_password=False)
    keys = [message(f"e{n % 7}", key=f"k{n}") for n in range(60)]
    outcomes: list[AppendOutcome] = []
    handled: list[str] = []
    sent = threading.Event()

    def send(offset: int) -> None:
        with opened(url) as store:
            for n in range(len(keys)):
                outcomes.extend(append(store, keys[(n + offset) % len(keys)]))

    def drain() -> None:
        with opened(url) as store:
            while not sent.is_set() or store.pending(None, None, 1):
                handled.extend(handle_all(store))

    senders = [Party(lambda offset=offset: send(offset)) for offset in (0, 1, 20, 40)]
    drains = [Party(drain), Party(drain)]
    for party in senders:
        party.join()
    sent.set()
    for party in drains:
        party.join()

    assert outcomes.count(STORED) == len(keys)
    assert outcomes.count(DUPLICATE) == 3 * len(keys)
    assert sorted(handled) == sorted(key.id for key in keys)
    assert sum(1 for _ in durable.replies(handled)) == len(keys)
