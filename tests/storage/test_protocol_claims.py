"""What a claim gives: mail that can be run, in its place, under a fence that grows, to one drain alone.

Each body also runs with one rule broken, and must then find mail that comes too early, too late, or to two drains.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import Connection

from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import Mailbox
from entitycelery.storage.sql import session as session_module
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.dialects.pooled import PooledPostgreSQL
from entitycelery.storage.sql.dialects.sqlite import Liveness, SQLite
from entitycelery.storage.sql.mailbox import ClaimedMail
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.statement import fetch, run
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import before_first, rewrite
from tests.storage.support import (
    CLUSTER,
    SHARD,
    append,
    change,
    claimed_ids,
    commit_of,
    handle,
    handle_all,
    holder,
    message,
    opened,
    query,
    retried,
)

TAKE: dict[type[Dialect], str] = {
    PooledPostgreSQL: f"INSERT INTO entity_{CLUSTER}.lock AS held",
    SQLite: "BEGIN IMMEDIATE",
}


def take_of(store: SqlStore) -> str:
    """The statement that takes claims."""
    return TAKE.get(type(store.dialect)) or store._locks._try  # type: ignore[attr-defined, no-any-return]


# The fence


def overtaken_fences(store: SqlStore) -> list[int]:
    """A drain has looked; before it claims, another claims the entity, works and lets go; the fences in turn."""
    append(store, message("a"), message("a"))
    fences: list[int] = []

    def overtake() -> None:
        with store.drain_session(SHARD) as session:
            [mailbox] = session.claim(1)
            fences.append(mailbox.fence)
            session.commit([commit_of(mailbox)], last=True)

    with store.drain_session(SHARD) as session, before_first(store, "drain", take_of(store), overtake):
        fences += [mailbox.fence for mailbox in session.claim(10)]
    return fences


def test_a_later_claim_has_the_larger_fence(durable: SqlStore) -> None:
    first, second = overtaken_fences(durable)

    assert first < second


def test_a_fence_drawn_before_the_claim_would_be_smaller_than_an_earlier_ones(durable: SqlStore) -> None:
    mailboxes: Any = durable._mailboxes
    look, read = mailboxes.candidates, mailboxes.read
    drawn: dict[Connection, int] = {}

    def look_and_draw(conn: Connection, *args: Any) -> Any:
        for statement in durable.dialect.draw_fence:
            run(conn, statement)
        drawn[conn] = fetch(conn, f"SELECT {durable.dialect.drawn_fence}")[0][0]
        return look(conn, *args)

    def read_under_it(conn: Connection, *args: Any) -> ClaimedMail:
        found = read(conn, *args)
        return ClaimedMail(found.mail, drawn[conn], found.others_in_flight)

    mailboxes.candidates, mailboxes.read = look_and_draw, read_under_it

    first, second = overtaken_fences(durable)

    assert second < first


# Mail that can be run


def delayed_mail(store: SqlStore) -> list[str]:
    append(store, message("a", delay_s=600))
    return handle_all(store)


def test_delayed_mail_waits_for_its_time(durable: SqlStore) -> None:
    assert delayed_mail(durable) == []


def test_mail_whose_time_is_not_compared_would_come_too_early(durable: SqlStore) -> None:
    day = {"postgresql": "interval '1 day'", "sqlite": "86400"}[durable.dialect.name]
    rewrite(durable, "m.due_at <= ", f"m.due_at - {day} <= ")

    assert len(delayed_mail(durable)) == 1


def behind_a_retry(store: SqlStore) -> list[str]:
    """A message waits for its retry and blocks; which mail of the entity is handled meanwhile."""
    append(store, message("a"), message("a"))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(1)
        session.commit([commit_of(mailbox, retried(mailbox.mail[0], after_s=600, blocking=True))], last=True)
    return handle_all(store)


def test_mail_behind_a_blocking_message_waits(durable: SqlStore) -> None:
    assert behind_a_retry(durable) == []


def test_mail_that_is_not_blocked_would_overtake_the_retry(durable: SqlStore) -> None:
    rewrite(durable, "b.blocking AND", "false AND")

    assert len(behind_a_retry(durable)) == 1


def behind_a_delayed_one(store: SqlStore) -> list[str]:
    append(store, message("a", delay_s=600))
    append(store, message("a"))
    return handle_all(store)


def test_a_delayed_message_holds_no_other_back(durable: SqlStore) -> None:
    assert len(behind_a_delayed_one(durable)) == 1


def test_a_delayed_message_that_blocked_would_hold_its_entity_back(durable: SqlStore) -> None:
    rewrite(durable, "b.blocking AND", "b.due_at IS NOT NULL AND")

    assert behind_a_delayed_one(durable) == []


# The clock


def early_by_s(store: SqlStore) -> float:
    """A delayed send in a transaction that was opened before; by how much it comes before its delay is over."""
    engine = create_engine(store.url)
    with engine.connect() as caller:
        fetch(caller, "SELECT 1")
        [(opened_at, sent_at)] = fetch(
            caller, "SELECT extract(epoch FROM now()), extract(epoch FROM clock_timestamp()) FROM pg_sleep(0.02)"
        )
        assert sent_at > opened_at
        append(store, message("a", delay_s=60), connection=caller)
        caller.commit()
    engine.dispose()
    [(due_at,)] = query(store, "SELECT extract(epoch FROM due_at) FROM {message}")
    return float(sent_at + 60 - due_at)


def test_a_delay_counts_from_the_send(postgres: SqlStore) -> None:
    assert early_by_s(postgres) <= 0


def test_a_delay_counted_from_the_begin_of_the_transaction_would_be_too_short(postgres: SqlStore) -> None:
    rewrite(postgres, "clock_timestamp()", "now()")

    assert early_by_s(postgres) > 0


# One drain alone


def no_page_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_LARGEST_PAGE", 0)


def behind_busy_entities(store: SqlStore) -> int:
    """A hundred entities are busy elsewhere, and one behind them is free; how many mailboxes a small claim gets."""
    append(store, *(message(f"busy{n}") for n in range(100)))
    with store.drain_session(SHARD) as first, store.drain_session(SHARD) as second:
        assert len(first.claim(100)) == 100
        append(store, message("free"))

        return len(second.claim(5))


def test_busy_entities_are_read_past(durable: SqlStore) -> None:
    assert behind_busy_entities(durable) == 1


def test_a_claim_that_does_not_read_on_would_leave_what_is_behind_busy_entities(
    durable: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_page_after_the_first(monkeypatch)

    assert behind_busy_entities(durable) == 0


def claim_within_a_claim(store: SqlStore) -> list[int]:
    """A second drain claims while the first is in the middle of its claim; how many mailboxes each gets."""
    append(store, message("a"))
    gets: list[int] = []

    def claim() -> None:
        # Held up by the first one's transaction, if that is one.
        with store.drain_session(SHARD) as second, suppress(StoreUnavailable):
            gets.append(len(second.claim(10)))

    with store.drain_session(SHARD) as first, before_first(store, "drain", "INSERT INTO lock (kind", claim):
        gets.append(len(first.claim(10)))
    return gets


def test_a_claim_is_one_transaction_on_sqlite(sqlite_url: str) -> None:
    with opened(sqlite_url, timeout_s=0.2) as store:
        assert claim_within_a_claim(store) == [1]


def test_a_claim_in_several_transactions_would_be_granted_twice(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store.dialect, "claim_scope", lambda conn: nullcontext())

    assert claim_within_a_claim(sqlite_store) == [1, 1]


def ends_beside_another(store: SqlStore, same: Callable[[SqlDrainSession, SqlDrainSession], None]) -> list[Mailbox]:
    """Of two drains with claims one ends; what a third gets."""
    append(store, message("a"))
    append(store, message("b"))
    with (
        store.drain_session(SHARD) as first,
        store.drain_session(SHARD) as second,
        store.drain_session(SHARD) as third,
    ):
        same(first, second)
        assert len(first.claim(1)) == len(second.claim(1)) == 1
        first.end()

        return third.claim(10)


def test_a_drain_that_ends_gives_its_own_claims_back_alone(sqlite_store: SqlStore) -> None:
    assert len(ends_beside_another(sqlite_store, lambda first, second: None)) == 1


def test_drains_that_share_a_token_would_give_each_others_claims_back(sqlite_store: SqlStore) -> None:
    def share(first: SqlDrainSession, second: SqlDrainSession) -> None:
        first._token = second._token

    assert len(ends_beside_another(sqlite_store, share)) == 2


# Life and death on SQLite


def after_a_kill(store: SqlStore) -> int:
    """A process that holds a claim is killed; how many messages another handles then."""
    append(store, message("a"))
    with holder(store.url.render_as_string(hide_password=False)) as program:
        program.kill()
    return len(handle_all(store))


def beside_a_living_one(store: SqlStore) -> int:
    """How many messages a drain handles that another living process holds."""
    append(store, message("a"))
    with holder(store.url.render_as_string(hide_password=False)):
        return len(handle_all(store))


def test_a_process_lives_as_long_as_its_lock(sqlite_store: SqlStore) -> None:
    assert beside_a_living_one(sqlite_store) == 0
    change(sqlite_store, "DELETE FROM {message}")
    assert after_a_kill(sqlite_store) == 1


def test_rows_without_a_look_at_their_process_would_outlive_it(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Liveness, "alive", lambda self, token: True)

    assert after_a_kill(sqlite_store) == 0


def test_a_process_that_is_only_believed_to_live_would_lose_its_claims(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A number of a process, for example, that means another one in the next container.
    monkeypatch.setattr(Liveness, "alive", lambda self, token: (0, token) in self._ours)

    assert beside_a_living_one(sqlite_store) == 1


def test_a_process_that_tests_its_own_file_would_give_its_claims_up(
    sqlite_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(sqlite_store, message("a"))
    url = sqlite_store.url.render_as_string(hide_password=False)
    with sqlite_store.drain_session(SHARD) as first, opened(url) as other:
        assert len(first.claim(10)) == 1
        assert handle_all(other) == []

        # A POSIX lock is no obstacle to the process that holds it.
        monkeypatch.setattr(Liveness, "_ours", set())

        assert len(handle_all(other)) == 1


# What was seen, and what is left behind


def given_back_then_handled(store: SqlStore) -> tuple[list[str], list[str]]:
    """A drain gives mail back and goes on; what was sent, and what it handles then."""
    sent = [message("a") for _ in range(6)]
    append(store, *sent)
    with store.drain_session(SHARD) as session:
        session.keep_only([], session.claim(2))
        return [one.id for one in sent], handle(session, limit=2)


def test_what_was_seen_is_forgotten_when_mail_goes_back(durable: SqlStore) -> None:
    sent, handled = given_back_then_handled(durable)

    assert handled == sent


def test_what_was_seen_and_is_kept_would_let_mail_overtake_what_went_back(
    durable: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remember(self: SqlDrainSession, seen: list[Any]) -> None:
        if seen or "seen" not in self.__dict__:
            self.__dict__["seen"] = seen

    monkeypatch.setattr(SqlDrainSession, "_seen", property(lambda self: self.__dict__["seen"], remember), raising=False)
    append(durable, *(sent := [message("a") for _ in range(6)]))

    with durable.drain_session(SHARD) as session:
        session.keep_only([], session.claim(2))

        assert claimed_ids(session.claim(2)) == [one.id for one in sent[2:4]]


OPEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"


def transactions_while_claimed(store: SqlStore) -> int:
    """How many sessions of the database have a transaction open while a drain holds a claim."""
    append(store, message("a"))
    with store.drain_session(SHARD) as session:
        assert session.claim(10)
        return int(query(store, OPEN)[0][0])


def test_no_transaction_is_open_while_a_claim_is_held(postgres: SqlStore) -> None:
    assert transactions_while_claimed(postgres) == 0


def test_claims_within_a_transaction_would_keep_it_open(postgres: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(conn: Connection) -> AbstractContextManager[None]:
        run(conn, "BEGIN")
        return nullcontext()

    monkeypatch.setattr(postgres.dialect, "claim_scope", begin)

    assert transactions_while_claimed(postgres) == 1
