"""Which notes of others a claim reads: those of some seconds, and older ones that are known by name.

Each body also runs with one rule broken, and must then read past everything, or miss what it looks for.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entitycelery.message import NewMessage
from entitycelery.storage.sql import floor, note_floor
from entitycelery.storage.sql.note_floor import KnownNotes, NoteFloor
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import rewrite
from tests.storage.support import SHARD, append, change, handle_all, held_snapshot, message, opened, pages_read, query

BATCHES = 2_000
# Notes of some seconds and the way down an index, on pages of their own in the worst case.
FEW = 40

NOTE = (
    "INSERT INTO {in_flight} (token, message_ids, noted_at) VALUES (:token, :ids, "
    "clock_timestamp() - :ago_s * interval '1 second')"
)


@pytest.fixture
def store(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlStore]:
    monkeypatch.setattr(floor, "RAISED_EVERY_S", 0.0)
    with opened(postgres_url) as store:
        yield store


def floor_of(store: SqlStore) -> NoteFloor:
    return store._in_flight._floor


def noted(store: SqlStore, *ids: str, token: str = "dead", ago_s: float = 60.0) -> None:
    """A note that a drain has left."""
    change(store, NOTE, token=token, ids=store.dialect.rows(list(ids)), ago_s=ago_s)


def raised(store: SqlStore) -> None:
    with store.engines.use("raising the floor of notes") as conn:
        store._in_flight.raise_floor(conn)


def crashes(store: SqlStore, of: NewMessage) -> int:
    """How often a message counts as having ended its process when it is claimed next."""
    with store.drain_session(SHARD) as session:
        session.claim(10)
        [pending] = store.pending(None, None, 10)
    assert pending.id == of.id
    return pending.crashes


# What is dead lies below


def batches_of_an_hour(store: SqlStore) -> None:
    """What so many batches leave: a note that was taken back, and that vacuum cannot remove."""
    change(
        store,
        "INSERT INTO {in_flight} (token, message_ids, noted_at) SELECT 'n' || n, json_build_array(repeat('x', 300)), "
        "clock_timestamp() - (3600 - n) * interval '1 second' FROM generate_series(1, :batches) AS n",
        batches=BATCHES,
    )
    change(store, "DELETE FROM {in_flight}")


def pages_for_a_claim(store: SqlStore) -> int:
    since_epoch_s, _ = floor_of(store).known
    one = message("a")
    append(store, one)
    read = pages_read(store, store._mailboxes._read, token="mine", ids=[one.id], since_epoch_s=since_epoch_s)
    handle_all(store)
    return read + pages_read(store, store._in_flight._since, since_epoch_s=since_epoch_s)


def test_a_claim_beside_an_old_transaction_does_not_read_what_is_dead(store: SqlStore) -> None:
    with held_snapshot(store):
        batches_of_an_hour(store)
        raised(store)

        assert pages_for_a_claim(store) < FEW


def test_a_drain_that_has_time_for_one_batch_raises_floors_too(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        session.claim(10)
        assert floor_of(store).known == KnownNotes()

    assert floor_of(store).known.since_epoch_s > 0


def test_if_only_later_batches_raised_floors_such_a_drain_would_not(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        session.claim(10)
        session._has_claimed = False

    assert floor_of(store).known == KnownNotes()


def test_claims_that_knew_no_floor_would_read_past_every_note(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoteFloor, "raise_when_due", lambda self, conn: None)
    with held_snapshot(store):
        batches_of_an_hour(store)
        raised(store)

        assert pages_for_a_claim(store) > 4 * FEW


def pages_for_a_unique_send(store: SqlStore) -> int:
    """A send with a key that a message holds, of which it has to know whether it runs."""
    append(store, message("a"))
    change(store, "UPDATE {message} SET fingerprint = 'unique:held'")
    return pages_read(store, store._unique_keys._look, names=["unique:held"])


def test_a_unique_send_beside_an_old_transaction_does_not_read_what_is_dead(store: SqlStore) -> None:
    with held_snapshot(store):
        batches_of_an_hour(store)

        assert pages_for_a_unique_send(store) < FEW


def test_a_unique_send_that_asked_all_notes_would_read_past_every_one(store: SqlStore) -> None:
    rewrite(store, "-120.0 * interval", "-1e9 * interval")
    with held_snapshot(store):
        batches_of_an_hour(store)

        assert pages_for_a_unique_send(store) > 2 * FEW


# What lives is known


def test_an_old_note_is_known_by_the_name_of_its_drain(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    noted(store, sent.id)

    raised(store)
    raised(store)

    assert floor_of(store).known.older == {"dead"}
    assert crashes(store, sent) == 1


def test_if_old_notes_were_not_known_by_name_a_crash_would_not_be_counted(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    noted(store, sent.id)

    raised(store)
    floor_of(store).known = KnownNotes(floor_of(store).known.since_epoch_s)

    assert crashes(store, sent) == 0


def test_a_note_that_grows_old_becomes_known_by_name(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = message("a")
    append(store, sent)
    noted(store, sent.id, ago_s=0.0)
    raised(store)
    assert floor_of(store).known.older == set()

    monkeypatch.setattr(note_floor, "_BEHIND_S", -1.0)
    raised(store)

    assert floor_of(store).known.older == {"dead"}
    assert crashes(store, sent) == 1


def test_the_note_of_a_drain_that_says_that_it_lives_is_read_once(store: SqlStore) -> None:
    append(store, message("a"))
    noted(store, "x", token="living")
    raised(store)
    change(store, "UPDATE {in_flight} SET noted_at = clock_timestamp()")

    with store.engines.use("reading notes") as conn:
        assert [note.token for note in store._in_flight._notes(conn)] == ["living"]


def test_a_drain_that_took_its_old_note_back_is_forgotten(store: SqlStore) -> None:
    noted(store, "x")
    raised(store)
    change(store, "DELETE FROM {in_flight}")

    with store.engines.use("reading notes") as conn:
        assert store._in_flight._notes(conn) == []
    assert floor_of(store).known.older == set()


def test_an_old_note_of_messages_that_are_done_is_removed(store: SqlStore) -> None:
    noted(store, "done")
    raised(store)

    store.remove_remains(3_600)

    assert query(store, "SELECT token FROM {in_flight}") == []


def test_a_silent_drain_is_evicted_though_its_note_is_old(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        session.claim(10)
        monkeypatch.setattr(note_floor, "_BEHIND_S", -1.0)
        raised(store)
        [token] = floor_of(store).known.older

        assert store.remove_remains(-1.0) == [token]


# What comes to lie below is found


def noted_below(store: SqlStore) -> NewMessage:
    """A message on a note that was written below the floor, as by a drain frozen between its clock and its commit."""
    raised(store)
    sent = message("a")
    append(store, sent)
    noted(store, sent.id)
    return sent


def test_a_note_below_the_floor_is_found_after_a_while(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = noted_below(store)
    monkeypatch.setattr(floor, "SEARCHED_EVERY_S", 0.0)
    monkeypatch.setattr(floor, "_SEARCHING_SHARE", 1e9)

    raised(store)

    assert crashes(store, sent) == 1


def test_without_a_search_a_note_below_the_floor_would_not_be_found(store: SqlStore) -> None:
    sent = noted_below(store)

    raised(store)

    assert crashes(store, sent) == 0


def test_a_search_that_takes_long_is_made_less_often(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = noted_below(store)
    monkeypatch.setattr(floor, "SEARCHED_EVERY_S", 0.0)
    monkeypatch.setattr(floor_of(store), "_search_took_s", 3_600.0)

    raised(store)

    assert crashes(store, sent) == 0


def test_a_store_that_keeps_nothing_dead_reads_all_notes(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "RAISED_EVERY_S", 0.0)
    raised(sqlite_store)

    assert floor_of(sqlite_store).known == KnownNotes()
