"""Mail of one sender to one entity is handled in the order in which its sends returned.

Each body also runs with one rule broken, and must then find disorder or mail that is never read.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from sqlalchemy import create_engine

from entitycelery.message import Mailbox, NewMessage
from entitycelery.storage.port import closing_store
from entitycelery.storage.sql.mailbox import ClaimedMail
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Party, rewrite
from tests.storage.support import (
    SHARD,
    address,
    append,
    change,
    claimed_ids,
    commit_of,
    ended,
    handle,
    handle_all,
    make_store,
    message,
    opened,
)


def url_of(store: SqlStore) -> str:
    return store.url.render_as_string(hide_password=False)


# Many messages in one statement


def sent_in_one_call(store: SqlStore) -> tuple[list[str], list[str]]:
    """Messages whose ids sort the other way round, sent in one call; as sent, and as handled."""
    sent = sorted((message("a") for _ in range(20)), key=lambda m: m.id, reverse=True)
    append(store, *sent)
    return [m.id for m in sent], handle_all(store)


def test_messages_sent_in_one_call_are_handled_in_its_order(store: SqlStore) -> None:
    sent, handled = sent_in_one_call(store)

    assert handled == sent


def test_seq_drawn_in_the_order_of_locks_would_handle_them_by_id(durable: SqlStore) -> None:
    if durable.dialect.name == "postgresql":
        rewrite(durable, "OFFSET 0) AS s", "ORDER BY r.id OFFSET 0) AS s")
    else:
        rewrite(durable, "ORDER BY r.ordinal", "ORDER BY r.id")

    sent, handled = sent_in_one_call(durable)

    assert handled == sorted(sent) != sent


# One sender over several connections


def sent_over_two_connections(store: SqlStore) -> tuple[list[str], list[str]]:
    """One sender whose pool gives it now this connection, now that."""
    sent = [message("a") for _ in range(10)]
    with closing_store(lambda: make_store(url_of(store))) as other:
        for n, one in enumerate(sent):
            append([store, other][n % 2], one)  # type: ignore[arg-type]
    return [m.id for m in sent], handle_all(store)


def test_messages_sent_over_several_connections_are_handled_in_order(durable: SqlStore) -> None:
    sent, handled = sent_over_two_connections(durable)

    assert handled == sent


def test_a_sequence_that_connections_cache_would_lose_the_order(postgres: SqlStore) -> None:
    change(postgres, "ALTER SEQUENCE {message_seq} CACHE 32")

    sent, handled = sent_over_two_connections(postgres)

    assert sorted(handled) == sorted(sent)
    assert handled != sent


# A transaction of the caller's


def sent_in_an_open_transaction(store: SqlStore) -> tuple[list[str], list[str]]:
    """A send in a transaction that stays open while a later send is handled; both ids, and what was handled."""
    first, second = message("a"), message("a")
    engine = create_engine(store.url)
    with engine.connect() as caller, store.drain_session(SHARD) as session:
        append(store, first, connection=caller)
        append(store, second)
        handled = handle(session)
        caller.commit()
        handled += handle(session)
    engine.dispose()
    return [first.id, second.id], handled


def test_a_send_in_an_open_transaction_takes_its_place_at_the_commit_and_is_not_lost(postgres: SqlStore) -> None:
    [first, second], handled = sent_in_an_open_transaction(postgres)

    assert handled == [second, first]


def test_a_drain_that_reads_on_from_the_last_seq_would_never_read_it(postgres: SqlStore) -> None:
    mailboxes: Any = postgres._mailboxes
    look = mailboxes.candidates
    last: list[int] = [0]

    def look_on(*args: Any) -> Any:
        found = look(*args)
        found.mail[:] = [one for one in found.mail if one.seq > last[0]]
        last.extend(one.seq for one in found.mail)
        last[:] = [max(last)]
        return found

    mailboxes.candidates = look_on

    [first, second], handled = sent_in_an_open_transaction(postgres)

    assert handled == [second]
    assert postgres.pending_ids([first]) == {first}


# Many senders, many drains


def note_down(mailbox: Mailbox) -> list[str]:
    before = msgspec.json.decode(mailbox.stored.state) if mailbox.stored.state else []
    return [*before, *(msgspec.json.decode(mail.args)["note"] for mail in mailbox.mail)]


def notes_of_many(url: str, prepare: Callable[[SqlStore], None]) -> list[list[str]]:
    """Three senders, three entities, two drains; what each entity has noted down, in the order of its turns."""
    names = ["a", "b", "c"]
    sent = threading.Event()

    def note(sender: int, n: int) -> NewMessage:
        return message(names[n % 3], f'{{"note": "{sender}.{n:03}"}}')

    def send(sender: int) -> None:
        with opened(url) as store:
            for n in range(12, 60):
                append(store, note(sender, n))

    def drain() -> None:
        with opened(url) as store:
            prepare(store)
            with store.drain_session(SHARD) as session:
                while not sent.is_set() or store.pending(None, None, 1):
                    mailboxes = session.claim(7)
                    commits = [commit_of(b, state=msgspec.json.encode(note_down(b)).decode()) for b in mailboxes]
                    if commits:
                        session.commit(commits, last=True)
                        session.release(mailboxes)

    with opened(url) as store:
        append(store, *(note(sender, n) for sender in range(3) for n in range(12)))
        drains = [Party(drain) for _ in range(2)]
        senders = [Party(lambda sender=sender: send(sender)) for sender in range(3)]
        for party in senders:
            party.join()
        sent.set()
        for party in drains:
            party.join()
        return [msgspec.json.decode(store.state(address(name)).state or "[]") for name in names]


def in_order(notes: Sequence[str]) -> bool:
    return all([n for n in notes if n[0] == s] == sorted(n for n in notes if n[0] == s) for s in "012")


def test_each_senders_mail_is_handled_once_and_in_order(store_url: str) -> None:
    noted = notes_of_many(store_url, lambda store: None)

    assert [len(notes) for notes in noted] == [60, 60, 60]
    assert [len(set(notes)) for notes in noted] == [60, 60, 60]
    assert all(in_order(notes) for notes in noted)


def test_mail_read_in_any_other_order_would_be_found_out(store_url: str) -> None:
    def newest_first(store: SqlStore) -> None:
        mailboxes: Any = store._mailboxes
        read = mailboxes.read

        def backwards(*args: Any) -> ClaimedMail:
            found = read(*args)
            return ClaimedMail(found.mail[::-1], found.fence, found.others_in_flight)

        mailboxes.read = backwards

    noted = notes_of_many(store_url, newest_first)

    assert not all(in_order(notes) for notes in noted)


# Drains that give mail back


class Walk:
    """Sends, and two drains that claim, commit some of what they hold, and give the rest back, in any order."""

    def __init__(self, store: SqlStore, sessions: Sequence[SqlDrainSession], seed: int) -> None:
        self._store = store
        self._sessions = sessions
        self._held: list[list[Mailbox]] = [[] for _ in sessions]
        self._rnd = random.Random(seed)
        self.sent: dict[str, list[str]] = {}
        self.handled: dict[str, list[str]] = {}

    def step(self) -> None:
        self._rnd.choice([self._send, self._send, self._claim, self._claim, self._commit, self._commit, self._give])()

    def _send(self) -> None:
        some = [message(self._rnd.choice("abcd")) for _ in range(self._rnd.randint(1, 6))]
        append(self._store, *some)
        for one in some:
            self.sent.setdefault(one.address.id, []).append(one.id)

    def _claim(self) -> None:
        n = self._rnd.randrange(2)
        if not self._held[n]:
            self._held[n] = self._sessions[n].claim(self._rnd.randint(1, 8))

    def _commit(self) -> None:
        n = self._rnd.randrange(2)
        if not self._held[n]:
            return
        box = self._held[n].pop(self._rnd.randrange(len(self._held[n])))
        done = box.mail[: self._rnd.randint(1, len(box.mail))]
        result = self._sessions[n].commit([commit_of(box, *map(ended, done))], last=not self._held[n])
        assert not result.lost
        self.handled.setdefault(box.address.id, []).extend(mail.id for mail in done)
        self._sessions[n].release([box])

    def _give(self) -> None:
        n = self._rnd.randrange(2)
        given, self._held[n] = self._held[n][1:], self._held[n][:1]
        self._sessions[n].keep_only(claimed_ids(self._held[n]), given)

    def finish(self) -> None:
        for n, session in enumerate(self._sessions):
            session.keep_only((), self._held[n])
        with self._store.drain_session(SHARD) as session:
            while mailboxes := session.claim(5):
                session.commit([commit_of(box) for box in mailboxes], last=True)
                session.release(mailboxes)
                for box in mailboxes:
                    self.handled.setdefault(box.address.id, []).extend(mail.id for mail in box.mail)


@pytest.mark.parametrize("seed", range(6))
def test_mail_that_was_given_back_keeps_its_place(store: SqlStore, seed: int) -> None:
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        walk = Walk(store, [first, second], seed)
        for _ in range(80):
            walk.step()
        walk.finish()

    assert walk.handled == walk.sent
