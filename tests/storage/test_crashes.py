"""Messages that end the process of their drain: found by its note, counted, and handed out alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from entitycelery.exceptions import StoreUnavailable
from entitycelery.storage.sql.statement import fetch
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import (
    SHARD,
    Program,
    append,
    await_unclaimed,
    change,
    claimed_ids,
    commit_of,
    handle,
    handle_all,
    holder,
    message,
    query,
)
from tests.waiting import eventually

NOTE = "INSERT INTO {in_flight} (token, message_ids, noted_at) VALUES (:token, :ids, {now})"

LONG_AGO = "UPDATE {in_flight} SET noted_at = {then}"


def note_of_a_dead_drain(store: SqlStore, *ids: str, token: str = "dead") -> None:
    listed = store.dialect.rows(list(ids))
    change(store, NOTE.replace("{now}", store.dialect.now), token=token, ids=listed)


def crashes(store: SqlStore) -> dict[str, int]:
    return {p.id: p.crashes for p in store.pending(None, None, 100)}


def notes(store: SqlStore) -> int:
    return int(query(store, "SELECT count(*) FROM {in_flight}")[0][0])


def test_a_killed_processs_messages_are_counted_once_and_come_alone(durable: SqlStore) -> None:
    sent = [message(f"e{n}") for n in range(3)]
    append(durable, *sent)
    with holder(durable.url.render_as_string(hide_password=False)) as program:
        program.kill()
    await_unclaimed(durable, *sent)

    alone = []
    with durable.drain_session(SHARD) as session:
        for _ in sent:
            [mailbox] = session.claim(100)
            alone.append([(m.id, m.crashes) for m in mailbox.mail])
            session.commit([commit_of(mailbox)], last=True)
            session.release([mailbox])
        assert session.claim(100) == []

    assert alone == [[(m.id, 1)] for m in sent]
    assert notes(durable) == 0


def test_a_message_that_kills_every_process_is_counted_every_time(durable: SqlStore) -> None:
    sent = [message("bad"), message("good")]
    append(durable, *sent)
    url = durable.url.render_as_string(hide_password=False)
    handled: list[str] = []
    for _ in range(3):
        with holder(url) as program:
            program.kill()
        await_unclaimed(durable, *sent)
    with durable.drain_session(SHARD) as session:
        while mailboxes := session.claim(100):
            handled += [mail.address.id for m in mailboxes for mail in m.mail]
            counted = {mail.address.id: mail.crashes for m in mailboxes for mail in m.mail}
            if "bad" in counted:
                assert counted == {"bad": 3}
            else:
                assert counted["good"] <= 1
            session.commit([commit_of(m) for m in mailboxes], last=True)
            session.release(mailboxes)

    assert handled == ["bad", "good"]


def test_a_crash_is_counted_before_the_message_runs_again(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    note_of_a_dead_drain(store, sent.id)

    with store.drain_session(SHARD) as session:
        session.claim(10)
        assert crashes(store) == {sent.id: 1}

    assert notes(store) == 0


def test_a_counted_message_has_changed(store: SqlStore) -> None:
    sent = message("a")
    append(store, sent)
    note_of_a_dead_drain(store, sent.id)

    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)

    assert mailbox.mail[0].rev == 1


def test_a_suspect_waits_for_the_clean_mail_that_its_entity_got_earlier(store: SqlStore) -> None:
    first, second, third = message("a"), message("a"), message("a")
    for one in (first, second, third):
        append(store, one)
    note_of_a_dead_drain(store, second.id)

    with store.drain_session(SHARD) as session:
        assert handle(session) == [first.id, second.id, third.id]


def test_messages_that_were_not_noted_are_not_counted(store: SqlStore) -> None:
    noted, clean = message("a"), message("b")
    append(store, noted, clean)
    note_of_a_dead_drain(store, noted.id, "gone-already")

    with store.drain_session(SHARD) as session:
        session.claim(10)
        assert crashes(store) == {noted.id: 1, clean.id: 0}


def test_a_note_keeps_what_was_not_claimed_yet(store: SqlStore) -> None:
    sent = [message(f"e{n}") for n in range(3)]
    append(store, *sent)
    note_of_a_dead_drain(store, *(m.id for m in sent))

    with store.drain_session(SHARD) as other:
        [mailbox] = other.claim(1)

        assert claimed_ids([mailbox]) == [sent[0].id]
    assert set(handle_all(store)) == {m.id for m in sent}


def test_the_note_of_a_living_drain_is_no_suspicion(store: SqlStore) -> None:
    append(store, message("a"), message("b"))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        first.claim(10)
        append(store, message("c"))

        second.claim(10)

        assert set(crashes(store).values()) == {0}


def test_a_session_that_ends_in_peace_leaves_no_note(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        session.claim(10)

    assert notes(store) == 0
    handle_all(store)


def test_what_is_given_back_is_not_noted_any_more(store: SqlStore) -> None:
    append(store, message("a"), message("b"), message("c"))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        running, *given = first.claim(10)

        first.keep_only(claimed_ids([running]), given)

        assert len(second.claim(10)) == 2
        assert set(crashes(store).values()) == {0}
        noted = {row[0] for row in query(store, "SELECT message_ids FROM {in_flight}")}
        assert any(noted_ids == store.dialect.rows(claimed_ids([running])) for noted_ids in noted)


def test_keeping_nothing_removes_the_note(store: SqlStore) -> None:
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        mailboxes = session.claim(10)

        session.keep_only([], mailboxes)

        assert notes(store) == 0


def test_a_note_of_messages_that_are_done_is_removed(store: SqlStore) -> None:
    pending = message("a")
    append(store, pending)
    note_of_a_dead_drain(store, "done", "done too", token="dead after its commit")
    note_of_a_dead_drain(store, "done", pending.id, token="dead before its commit")

    store.remove_remains(60)

    left = query(store, "SELECT token FROM {in_flight}")
    assert left == [("dead before its commit",)]


def test_locks_of_a_dead_process_are_removed_and_those_of_a_living_one_stay(sqlite_store: SqlStore) -> None:
    locks = "SELECT kind FROM {lock} ORDER BY kind"
    append(sqlite_store, message("a"))
    with holder(sqlite_store.url.render_as_string(hide_password=False)) as program:
        sqlite_store.remove_remains(60)
        assert query(sqlite_store, locks) == [("attention",), ("claim",)]
        program.kill()

        sqlite_store.remove_remains(60)

        assert query(sqlite_store, locks) == []


def test_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(sqlite_store: SqlStore) -> None:
    append(sqlite_store, message("a"))
    url = sqlite_store.url.render_as_string(hide_password=False)
    folder = Path(f"{sqlite_store.url.database}.processes")
    with holder(url) as dead, holder(url):
        assert len(list(folder.iterdir())) == 2
        dead.kill()
        for file in folder.iterdir():
            os.utime(file, (1.0, 1.0))

        sqlite_store.remove_remains(60)

        assert len(list(folder.iterdir())) == 1


BATCH = """
import os, sys
from tests.storage.support import SHARD, claimed_ids, commit_of, opened
with opened(sys.argv[1]) as store, store.drain_session(SHARD) as session:
    mailboxes = session.claim(100)
    running, *given = mailboxes
    session.keep_only(claimed_ids([running]), given)
    print("READY", *claimed_ids([running]), flush=True)
    sys.stdin.readline()
"""


def test_only_the_running_message_of_a_killed_drain_is_suspect(durable: SqlStore) -> None:
    sent = [message("a"), message("b")]
    append(durable, *sent)
    program = Program(BATCH, durable.url.render_as_string(hide_password=False))
    _, running = program.line().split()

    program.kill()
    await_unclaimed(durable, *sent)

    with durable.drain_session(SHARD) as session:
        session.claim(10)
        assert {count for message_id, count in crashes(durable).items() if message_id == running} == {1}
        assert {count for message_id, count in crashes(durable).items() if message_id != running} == {0}


def test_a_drain_that_lost_only_its_session_takes_back_what_was_counted(postgres: SqlStore) -> None:
    append(postgres, message("a"))
    with postgres.drain_session(SHARD) as first, postgres.drain_session(SHARD) as second:
        first.claim(10)
        with first._use("asking for its process") as conn:
            [(pid,)] = fetch(conn, "SELECT pg_backend_pid()")
        query(postgres, f"SELECT pg_terminate_backend({pid}, 5000)")
        eventually(lambda: second.claim(10))
        assert set(crashes(postgres).values()) == {1}

        first.end()

        assert set(crashes(postgres).values()) == {0}


def test_a_session_that_was_lost_does_not_come_back_without_its_claims(postgres: SqlStore) -> None:
    append(postgres, message("a"))
    with postgres.drain_session(SHARD) as session:
        [mailbox] = session.claim(10)
        with session._use("asking for its process") as conn:
            [(pid,)] = fetch(conn, "SELECT pg_backend_pid()")
        query(postgres, f"SELECT pg_terminate_backend({pid}, 5000)")

        # As the watch over a long turn does, before the turn ends.
        with pytest.raises(StoreUnavailable):
            session.say_alive()

        with pytest.raises(StoreUnavailable, match="its claims with it"):
            session.commit([commit_of(mailbox)], last=True)


@pytest.mark.parametrize("count", [1, 2])
def test_old_notes_are_removed_with_the_replies(store: SqlStore, count: int) -> None:
    for n in range(count):
        note_of_a_dead_drain(store, "gone", token=f"dead{n}")
    change(store, LONG_AGO.replace("{then}", store.dialect.from_epoch("1.0")))

    store.purge_replies(1.0, 100)

    assert notes(store) == 0
