"""From when on a look for due mail reads: floors rise where much lies dead, and what comes to lie below is found.

Each body also runs with one rule broken, and must then read past everything, or miss what it looks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from entitycelery.storage.port import EVER_EPOCH_S
from entitycelery.storage.sql import due_floor, floor
from entitycelery.storage.sql.due_floor import _Group
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    OTHER_SHARD,
    SHARD,
    append,
    change,
    handle,
    handle_all,
    held_snapshot,
    message,
    opened,
    pages_read,
)

MESSAGES = 5_000
# Mail of some seconds and the way down an index, on pages of their own in the worst case.
FEW = 40

Pages = Callable[[SqlStore], int]

DEAD = """
    INSERT INTO {message} (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, due_at)
    SELECT 'm' || n, nextval('{message_seq}'), :shard_group, :shard, 'Account', 'e', 1, 'add', '{}', 'f',
           clock_timestamp() - (3600.0 * (1 - n / :messages)) * interval '1 second'
    FROM generate_series(1, :messages) AS n
    """


@pytest.fixture
def store(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlStore]:
    """One whose looks take long enough for floors, however little there is."""
    monkeypatch.setattr(floor, "RAISED_EVERY_S", 0.0)
    monkeypatch.setattr(due_floor, "_LONG_S", 0.0)
    with opened(postgres_url) as store:
        yield store


def floor_of(store: SqlStore) -> float:
    return store._due_floors.since_epoch_s([SHARD])


def raised(store: SqlStore) -> None:
    with store.engines.use("raising the floors of due mail") as conn:
        store._due_floors.raise_when_due(conn, [SHARD])


def an_hour_of_delays(store: SqlStore) -> None:
    """What so many delayed messages leave that were handled, and that vacuum cannot remove."""
    change(store, DEAD, shard_group=SHARD.group, shard=SHARD.number, messages=MESSAGES)
    change(store, "DELETE FROM {message}")


def pages_of_a_look(store: SqlStore) -> int:
    bound = {"shard_group": SHARD.group, "shards": [SHARD.number], "floors": [0], "per_shard": 100}
    return pages_read(store, store._mailboxes._candidates, **bound, due_since_epoch_s=floor_of(store))


def pages_of_a_runners_look(store: SqlStore) -> int:
    with store.engines.use("clipping") as conn:
        [since_s] = store._due_floors.clip(conn, {SHARD: EVER_EPOCH_S}).values()
    rows = store.dialect.rows([{"g": SHARD.group, "n": SHARD.number, "since": since_s}])
    return pages_read(store, store._moments._look, rows=rows, horizon_s=2.0)


LOOKS = pytest.mark.parametrize("pages_of", [pages_of_a_look, pages_of_a_runners_look])


@LOOKS
def test_a_look_beside_an_old_transaction_does_not_read_past_what_was_due(store: SqlStore, pages_of: Pages) -> None:
    with held_snapshot(store):
        an_hour_of_delays(store)
        raised(store)

        assert pages_of(store) < FEW


@LOOKS
def test_without_floors_a_look_would_read_past_all_that_was_due(
    store: SqlStore, pages_of: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due_floor, "_LONG_S", 3600.0)
    with held_snapshot(store):
        an_hour_of_delays(store)
        raised(store)

        assert floor_of(store) == EVER_EPOCH_S
        assert pages_of(store) > 2 * FEW


def delays_that_statistics_do_not_know(store: SqlStore) -> None:
    """Mail without a delay, beside what delayed mail has left: any index that has delayed mail alone looks empty."""
    append(store, *(message(f"e{number}") for number in range(2_000)))
    change(store, DEAD, shard_group=SHARD.group, shard=SHARD.number, messages=MESSAGES)
    change(store, "DELETE FROM {message} WHERE due_at IS NOT NULL")
    change(store, "ANALYZE {message}")
    raised(store)


def test_a_look_for_due_mail_goes_by_its_moments_whatever_statistics_say(store: SqlStore) -> None:
    with held_snapshot(store):
        delays_that_statistics_do_not_know(store)

        assert pages_of_a_look(store) < 3 * FEW


def test_if_another_index_fitted_as_well_all_of_it_would_be_read(store: SqlStore) -> None:
    change(store, f'DROP INDEX "{store.dialect.schema}".message_delayed')
    change(store, "CREATE INDEX message_delayed ON {message} (lock_key) WHERE due_at IS NOT NULL")
    with held_snapshot(store):
        delays_that_statistics_do_not_know(store)

        assert pages_of_a_look(store) > 3 * FEW


def test_a_runner_sees_what_is_due_below_a_floor_after_a_while(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    due_below(store)
    monkeypatch.setattr(_Group, "search_is_due", lambda self: False)
    assert store.due_moments({SHARD: EVER_EPOCH_S}).due == {}

    monkeypatch.setattr(_Group, "search_is_due", lambda self: True)

    assert list(store.due_moments({SHARD: EVER_EPOCH_S}).due) == [SHARD]


def test_floors_are_gone_once_a_look_is_fast_again(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    raised(store)
    assert floor_of(store) > EVER_EPOCH_S

    monkeypatch.setattr(due_floor, "_LONG_S", 3600.0)
    monkeypatch.setattr(due_floor, "_SEARCHED_EVERY_S", 0.0)
    monkeypatch.setattr(floor, "_SEARCHING_SHARE", 1e9)
    raised(store)

    assert floor_of(store) == EVER_EPOCH_S


def test_a_floor_stays_below_mail_that_is_due_and_busy(store: SqlStore) -> None:
    waiting = message("waiting", deliver_at_epoch_s=time.time() - 60.0)
    append(store, waiting)
    with store.drain_session(SHARD) as session:
        session.claim(10)
        for _ in range(3):
            raised(store)

    assert handle_all(store) == [waiting.id]


def test_a_floor_stays_behind_the_present_moment(store: SqlStore) -> None:
    raised(store)
    due = message("due", delay_s=0.0)
    append(store, due)

    assert handle_all(store) == [due.id]


def test_the_floor_of_one_shard_is_none_for_another(store: SqlStore) -> None:
    other = message("other", deliver_at_epoch_s=time.time() - 60.0, shard=OTHER_SHARD)
    append(store, other)
    raised(store)

    with store.drain_session(SHARD, OTHER_SHARD) as session:
        assert handle(session) == [other.id]


def due_below(store: SqlStore) -> str:
    """A message for a moment below the floor, as somebody may choose it."""
    raised(store)
    below = message("below", deliver_at_epoch_s=time.time() - 60.0)
    append(store, below)
    return below.id


def test_what_is_due_below_a_floor_is_found_after_a_while(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    below = due_below(store)
    monkeypatch.setattr(due_floor, "_SEARCHED_EVERY_S", 0.0)
    monkeypatch.setattr(floor, "_SEARCHING_SHARE", 1e9)

    assert handle_all(store) == [below]


def test_without_a_search_it_would_not_be_found(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    due_below(store)
    monkeypatch.setattr(_Group, "search_is_due", lambda self: False)

    assert handle_all(store) == []


def test_a_search_that_takes_long_is_made_less_often(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    due_below(store)
    monkeypatch.setattr(due_floor, "_SEARCHED_EVERY_S", 0.0)
    store._due_floors._groups[SHARD.group].search_took_s = 60.0

    assert handle_all(store) == []


def test_a_store_that_keeps_nothing_dead_has_no_floors_of_due_mail(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "RAISED_EVERY_S", 0.0)
    monkeypatch.setattr(due_floor, "_LONG_S", 0.0)
    raised(sqlite_store)

    assert floor_of(sqlite_store) == EVER_EPOCH_S
