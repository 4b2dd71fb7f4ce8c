"""From where on a look reads: floors rise behind what is done, and never past a message that is still to come.

Each body also runs with one rule broken, and must then lose mail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from entitycelery.message import NewMessage
from entitycelery.storage.sql import floor
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.floor import Floors, all_ended
from entitycelery.storage.sql.statement import fetch
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import SHARD, append, change, handle_all, message, opened


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "RAISED_EVERY_S", 0.0)


def floors_of(store: SqlStore) -> Floors:
    return store._floors


def floor_of(store: SqlStore) -> int:
    [number] = floors_of(store).of([SHARD])
    return number


def handle_some(store: SqlStore, count: int = 3) -> None:
    """Send and handle some messages, look by look, so that floors have their chance to rise."""
    for _ in range(count):
        append(store, message("busy"))
        handle_all(store)


@contextmanager
def held_snapshot(store: SqlStore) -> Iterator[None]:
    engine = create_engine(store.url)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        conn.exec_driver_sql("SELECT 1")
        yield
    engine.dispose()


def sent_while_others_are_handled(store: SqlStore) -> tuple[NewMessage, list[str]]:
    """A message whose transaction is open while floors rise; and what is handled after its commit."""
    engine = create_engine(store.url)
    late = message("late")
    with engine.begin() as conn:
        append(store, late, connection=conn)
        handle_some(store, 6)
    engine.dispose()
    return late, handle_all(store)


def test_floors_rise_behind_what_is_done(postgres: SqlStore) -> None:
    handle_some(postgres, 6)

    assert floor_of(postgres) > 1


def test_floors_stay_below_what_is_pending(postgres: SqlStore) -> None:
    waiting = message("waiting")
    append(postgres, waiting)
    with postgres.drain_session(SHARD) as session:
        # Held by this drain: the others read past it.
        session.claim(10)
        handle_some(postgres, 6)
        with postgres.drain_session(SHARD) as other:
            assert other.claim(10) == []

    assert handle_all(postgres) == [waiting.id]


def test_a_floor_stays_below_a_message_whose_transaction_is_open(postgres: SqlStore) -> None:
    late, handled = sent_while_others_are_handled(postgres)

    assert handled == [late.id]


def test_floors_that_do_not_wait_for_open_transactions_would_lose_mail(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "all_ended", lambda before, now: True)

    late, handled = sent_while_others_are_handled(postgres)

    assert handled == []
    assert postgres.pending_ids([late.id]) == {late.id}


def sent_while_a_floor_is_looked_for(store: SqlStore, monkeypatch: pytest.MonkeyPatch, *, senders_first: bool) -> bool:
    """Whether a message is handled whose transaction begins just before the sequence is read, and stays open."""
    late = message("late")
    settled, look = floors_of(store)._settled, store.dialect.senders
    engine = create_engine(store.url)
    with engine.connect() as sender:

        def raced(conn: Connection) -> int:
            if senders_first:
                seen = look(conn)
                monkeypatch.setattr(store.dialect, "senders", lambda conn: seen)
            if not sender.in_transaction():
                append(store, late, connection=sender)
            return settled(conn)

        monkeypatch.setattr(floors_of(store), "_settled", raced)
        handle_some(store, 6)
        sender.commit()
    engine.dispose()
    monkeypatch.undo()
    return late.id in handle_all(store)


def test_a_sender_that_begins_while_a_floor_is_looked_for_is_waited_for(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sent_while_a_floor_is_looked_for(postgres, monkeypatch, senders_first=False)


def test_senders_looked_for_before_the_number_is_read_would_lose_mail(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not sent_while_a_floor_is_looked_for(postgres, monkeypatch, senders_first=True)


@pytest.mark.parametrize(
    ("before", "now", "ended"),
    [
        (set(), set(), True),
        ({"3/7"}, {"3/8", "4/1"}, True),
        ({"3/7"}, {"3/7"}, False),
        # The name of a transaction that was prepared says nothing of who it was.
        ({"3/7"}, {"-1/812"}, False),
    ],
)
def test_a_transaction_has_ended_when_its_name_is_gone(before: set[str], now: set[str], ended: bool) -> None:
    assert all_ended(before, now) == ended


def test_a_floor_is_forgotten_after_a_while(postgres: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    handle_some(postgres, 6)
    # As whoever restores rows from a copy does.
    restored = message("restored")
    append(postgres, restored)
    change(postgres, "UPDATE {message} SET seq = 1")
    assert handle_all(postgres) == []

    monkeypatch.setattr(floor, "FORGOTTEN_AFTER_S", 0.0)

    assert handle_all(postgres) == [restored.id]


def test_the_first_number_of_a_new_store_is_still_to_come(postgres: SqlStore) -> None:
    for _ in range(3):
        postgres.waiting_shards([SHARD.group], SHARD.number + 1, delayed=False)

    first = message("first")
    append(postgres, first)

    assert floor_of(postgres) <= 1
    assert handle_all(postgres) == [first.id]


def test_floors_of_a_store_that_was_made_anew_are_forgotten(postgres: SqlStore) -> None:
    handle_some(postgres, 6)
    change(postgres, "ALTER SEQUENCE {message_seq} RESTART")
    first = message("first")
    append(postgres, first)
    assert handle_all(postgres) == []

    postgres.waiting_shards([SHARD.group], SHARD.number + 1, delayed=False)

    assert handle_all(postgres) == [first.id]
    handle_some(postgres, 4)
    assert floor_of(postgres) > 1


def test_looks_beside_an_old_transaction_do_not_read_what_is_dead(postgres_url: str) -> None:
    with opened(postgres_url) as store, held_snapshot(store):
        for _ in range(10):
            append(store, *(message(f"e{number}") for number in range(200)))
            handle_all(store)

        [now] = floors_of(store).of([SHARD])
        read, without = (pages_read(store, floor_number) for floor_number in (now, 0))

    assert read * 4 < without


def pages_read(store: SqlStore, floor_number: int) -> int:
    """How many pages a look for mail touches that begins there."""
    bound = {"per_shard": 100, "shard_group": SHARD.group, "shards": [SHARD.number], "floors": [floor_number]}
    statement = str(store._mailboxes._candidates)
    with store._connection("explaining") as conn:
        [(plan,)] = fetch(conn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", bound)
    [top] = plan if isinstance(plan, list) else json.loads(plan)
    return int(top["Plan"]["Shared Hit Blocks"]) + int(top["Plan"]["Shared Read Blocks"])


def test_a_store_that_keeps_nothing_dead_has_no_floors(sqlite_store: SqlStore) -> None:
    dialect: Dialect = sqlite_store.dialect
    assert not dialect.keeps_what_is_dead
    handle_some(sqlite_store, 6)

    assert floor_of(sqlite_store) == 0
