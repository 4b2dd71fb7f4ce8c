"""From where on a look reads: floors rise behind what is done, and never past a message that is still to come.

Each body also runs with one rule broken, and must then lose mail.
"""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from entitycelery.message import NewMessage
from entitycelery.storage.port import EVER_EPOCH_S
from entitycelery.storage.sql import floor
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.floor import Floors, all_ended
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Party
from tests.storage.support import SHARD, append, change, handle, handle_all, held_snapshot, message, opened, pages_read


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


def test_floors_rise_where_the_first_look_found_that_nothing_was_ever_sent(postgres: SqlStore) -> None:
    for _ in range(3):
        postgres.waiting_shards([SHARD])

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


def restored_below(store: SqlStore) -> NewMessage:
    """A message whose number is below the floor, as whoever restores rows from a copy leaves it."""
    handle_some(store, 6)
    restored = message("restored")
    append(store, restored)
    change(store, "UPDATE {message} SET seq = 1")
    assert handle_all(store) == []
    return restored


def test_what_lies_below_a_floor_is_found_after_a_while(postgres: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    restored = restored_below(postgres)

    monkeypatch.setattr(floor, "SEARCHED_EVERY_S", 0.0)

    assert handle_all(postgres) == [restored.id]


def test_a_sweep_finds_what_lies_below_a_floor_too(postgres: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    restored_below(postgres)
    assert postgres.waiting_shards([SHARD]) == []

    monkeypatch.setattr(floor, "SEARCHED_EVERY_S", 0.0)

    assert [mail.shard for mail in postgres.waiting_shards([SHARD])] == [SHARD]


def test_a_search_below_floors_that_takes_long_is_made_less_often(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = restored_below(postgres)
    monkeypatch.setattr(floor, "SEARCHED_EVERY_S", 0.0)
    floors_of(postgres)._search_took_s = 3600.0

    assert handle_all(postgres) == []

    floors_of(postgres)._search_took_s = 0.0
    assert handle_all(postgres) == [restored.id]


def test_the_first_number_of_a_new_store_is_still_to_come(postgres: SqlStore) -> None:
    for _ in range(3):
        postgres.waiting_shards([SHARD])

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

    postgres.waiting_shards([SHARD])

    assert handle_all(postgres) == [first.id]
    handle_some(postgres, 4)
    assert floor_of(postgres) > 1


def test_a_drain_that_stands_still_while_it_raises_floors_holds_no_other_up(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = message("first"), message("second")
    handled: list[list[str]] = []
    senders = postgres.dialect.senders

    def stand_still(conn: Connection) -> set[str]:
        monkeypatch.setattr(postgres.dialect, "senders", senders)
        append(postgres, second)
        handled.append(Party(lambda: handle_all(postgres)).join())
        return senders(conn)

    append(postgres, first)
    with postgres.drain_session(SHARD) as session:
        handle(session)
        monkeypatch.setattr(postgres.dialect, "senders", stand_still)
        assert session.claim(10) == []

    assert handled == [[second.id]]


def test_looks_beside_an_old_transaction_do_not_read_what_is_dead(postgres_url: str) -> None:
    with opened(postgres_url) as store, held_snapshot(store):
        for _ in range(10):
            append(store, *(message(f"e{number}") for number in range(200)))
            handle_all(store)

        [now] = floors_of(store).of([SHARD])
        read, without = (pages_of_a_look(store, floor_number) for floor_number in (now, 0))

    assert read * 4 < without


def pages_of_a_look(store: SqlStore, floor_number: int) -> int:
    """How many pages a look for mail touches that begins there."""
    bound = {"per_shard": 100, "shard_group": SHARD.group, "shards": [SHARD.number], "floors": [floor_number]}
    bound["due_since_epoch_s"] = EVER_EPOCH_S
    return pages_read(store, store._mailboxes._candidates, **bound)


def test_a_store_that_keeps_nothing_dead_has_no_floors(sqlite_store: SqlStore) -> None:
    dialect: Dialect = sqlite_store.dialect
    assert not dialect.keeps_what_is_dead
    handle_some(sqlite_store, 6)

    assert floor_of(sqlite_store) == 0
