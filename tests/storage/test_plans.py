"""How PostgreSQL runs the statements of the hot paths: by the indexes that they name, however full the tables are.

The statements are those that the store really sends, and are explained on its own connections, as it prepares them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.message import Status
from entitycelery.storage.sql import statement as statement_module
from entitycelery.storage.sql.dialects.base import Role
from entitycelery.storage.sql.statement import Statement, fetch, run
from entitycelery.storage.sql.store import SqlStore
from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database
from tests.storage.support import (
    OTHER_SHARD,
    SHARD,
    address,
    append,
    change,
    commit_of,
    ended,
    message,
    opened,
    retried,
)

# in_flight holds a row per running drain, meta and migration a handful.
BIG = {"message", "reply", "state"}

FILL = [
    """
    INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, finished_at)
    SELECT md5(n::text), 'f', 'Account', 'e' || n, 'add', 'done', clock_timestamp() - n * interval '1 second'
    FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO {state} (type, entity_id, version, state_version, state)
    SELECT 'Account', 'e' || n, 1, 1, '{"n": 1}' FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO {message} (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, due_at)
    SELECT md5('m' || n), nextval('{message_seq}'), 'default', n % 4, 'Account', 'e' || n, n, 'add', '{}', 'f',
           CASE WHEN n % 5 = 0 THEN clock_timestamp() + (n - 4000) * interval '1 second' END
    FROM generate_series(1, 5000) n
    """,
]


class Sent:
    """A statement as the store sent it: over which kind of connection, and with what."""

    def __init__(self, role: Role, statement: Statement, parameters: dict[str, Any]) -> None:
        self.role = role
        self.statement = statement
        self.parameters = parameters


@contextmanager
def recorded(store: SqlStore) -> Iterator[dict[str, Sent]]:
    """The prepared statements that the store sends meanwhile, by their text."""
    sent: dict[str, Sent] = {}
    statements = {
        one.name: one
        for noun in vars(store).values()
        for value in getattr(noun, "__dict__", {}).values()
        for one in (value if isinstance(value, tuple) else (value,))
        if isinstance(one, Statement) and one.name
    }
    roles: dict[int, Role] = {id(store._engine(role)): role for role in ("client", "drain")}
    execute = statement_module._execute

    def watched(conn: Connection, text: str, params: Any) -> Any:
        for name, statement in statements.items():
            if f"EXECUTE {name}" in text and not text.startswith("PREPARE"):
                sent[str(statement)] = Sent(roles[id(conn.engine)], statement, dict(params or {}))
        return execute(conn, text, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statement_module, "_execute", watched)
        yield sent


def work(store: SqlStore) -> None:
    """Everything that senders, drains and duties do again and again."""
    first, keyed = message("e1"), message("e2", key="k", capacity=10)
    append(store, first, message("e3"), message("e4", shard=OTHER_SHARD))
    append(store, keyed)
    store.replies([first.id, keyed.id])
    store.pending_ids([first.id, keyed.id])
    store.state(address("e1"))
    store.mailbox_status(address("e1"), SHARD)
    store.waiting_shards(["default"], 4, delayed=False)
    store.waiting_shards(["default"], 4, delayed=True)
    with store._connection("raising floors") as conn:
        for _ in range(2):
            store._floors._raise(conn, [SHARD, OTHER_SHARD])
    with store.drain_session(SHARD, OTHER_SHARD) as session:
        plain = session.claim(200)
        out = message("e5", key="out")
        result = session.commit(
            [commit_of(box, *(ended(m, outgoing=[out]) for m in box.mail)) for box in plain], last=True
        )
        assert not result.lost
        session.release(plain)
        append(store, message("e1"), message("e2"))
        careful = session.claim(200)
        assert len(careful) >= 2
        turns = [ended(careful[0].mail[0]), retried(careful[1].mail[0], after_s=3600)]
        session.commit([commit_of(box, turn) for box, turn in zip(careful, turns, strict=False)], last=True)
        session.release(careful)
    assert store.purge_replies(0, 10) > 0
    append(store, parked := message("e1"), doomed := message("e6", shard=ShardId("default", 3)))
    store.reschedule(parked.id, delay_s=3600, deliver_at_epoch_s=None)
    store.cancel(parked.id)
    with store.drain_session(doomed.shard) as session:
        [box] = session.claim(1)
        session.commit([commit_of(box, ended(box.mail[0], status=Status.DEAD))], last=True)
    store.retry_dead([doomed.id])


def plan_of(conn: Connection, sent: Sent) -> dict[str, Any]:
    """The plan of a statement that this connection has prepared."""
    [(plan,)] = fetch(conn, f"EXPLAIN (FORMAT JSON) {sent.statement.execute}", sent.parameters)
    return dict((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def indexes_of(plan: dict[str, Any]) -> set[str]:
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def scanned(plan: dict[str, Any]) -> set[str]:
    """The big tables that are read from end to end."""
    return {n["Relation Name"] for n in nodes(plan) if n["Node Type"] == "Seq Scan"} & BIG


@pytest.fixture(scope="module")
def plans_url(services: Services) -> Iterator[str]:
    with fresh_postgres_database(url_or_skip(services.postgres())) as url:
        yield url


@pytest.fixture(scope="module")
def hot(plans_url: str) -> Iterator[tuple[SqlStore, dict[str, Sent], dict[str, Connection]]]:
    """A store that was empty when its statements were planned, for good, and was filled afterwards."""
    with opened(plans_url) as store:
        # Autovacuum would refresh the statistics of some runs and not of others.
        for table in sorted(BIG):
            change(store, f"ALTER TABLE {{{table}}} SET (autovacuum_enabled = off)")
        with recorded(store) as sent:
            work(store)
        change(store, "TRUNCATE {message}, {reply}, {state}")
        with store._engine("client").connect() as client, store._engine("drain").connect() as drain:
            connections = {"client": client, "drain": drain}
            for conn in connections.values():
                run(conn, "SET plan_cache_mode = force_generic_plan")
                run(conn, "DEALLOCATE ALL")
                conn.info["prepared"] = set()
            for one in sent.values():
                conn = connections[one.role]
                run(conn, one.statement.prepare)
                plan_of(conn, one)
            for statement in FILL:
                change(store, statement)
            yield store, sent, connections


Hot = tuple[SqlStore, dict[str, Sent], dict[str, Connection]]


def test_the_statements_of_the_hot_paths_are_all_explained(hot: Hot) -> None:
    _, sent, _ = hot

    assert len(sent) >= 15
    assert {one.role for one in sent.values()} == {"client", "drain"}


def test_a_plan_made_while_the_tables_were_empty_scans_none_once_they_are_full(hot: Hot) -> None:
    _, sent, connections = hot

    bad = {text: scanned(plan_of(connections[one.role], one)) for text, one in sent.items()}

    assert {text: tables for text, tables in bad.items() if tables} == {}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("statistics", ["none", "fresh"])
def test_no_statement_scans_a_full_table(hot: Hot, mode: str, statistics: str) -> None:
    store, sent, connections = hot
    if statistics == "fresh":
        change(store, "ANALYZE")
    bad = {}
    for conn in connections.values():
        run(conn, "DISCARD PLANS")
        run(conn, f"SET plan_cache_mode = {mode}")
    try:
        for text, one in sent.items():
            plan = plan_of(connections[one.role], one)
            if scanned(plan):
                bad[text] = scanned(plan)
    finally:
        for conn in connections.values():
            run(conn, "SET plan_cache_mode = force_generic_plan")

    assert bad == {}


def plan_by(hot: Hot, statement: Statement) -> dict[str, Any]:
    _, sent, connections = hot
    one = sent[str(statement)]
    return plan_of(connections[one.role], one)


def test_floors_rise_by_the_index_of_ready_mail(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._floors._first)) == {"message_ready"}


def test_mail_is_found_by_the_indexes_of_ready_and_of_due_mail(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._mailboxes._candidates)) >= {"message_ready", "message_due"}


def test_claimed_mail_is_read_by_its_primary_key(hot: Hot) -> None:
    assert "message_pkey" in indexes_of(plan_by(hot, hot[0]._mailboxes._read))


def test_waiting_shards_are_found_by_one_probe_each(hot: Hot) -> None:
    mailboxes = hot[0]._mailboxes

    assert "message_ready" in indexes_of(plan_by(hot, mailboxes._waiting_ready))
    assert "message_due" in indexes_of(plan_by(hot, mailboxes._waiting_due))


def test_a_keyed_send_looks_by_the_primary_keys(hot: Hot) -> None:
    messages = hot[0]._messages

    assert indexes_of(plan_by(hot, messages._withdraw_finished)) == {"message_pkey", "reply_pkey"}
    assert indexes_of(plan_by(hot, messages._look)) == {"message_pkey", "reply_pkey"}


def test_states_and_replies_are_read_by_their_primary_keys(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._states._of_type)) == {"state_pkey"}
    assert indexes_of(plan_by(hot, store._replies._read)) == {"reply_pkey"}


def test_a_commit_finds_its_messages_by_their_primary_key(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._commits._pending)) == {"message_pkey"}
    assert indexes_of(plan_by(hot, store._commits._delete)) == {"message_pkey"}
    assert "message_pkey" in indexes_of(plan_by(hot, store._commits._finish[1]))  # type: ignore[arg-type]


def test_old_replies_are_found_by_their_age(hot: Hot) -> None:
    replies = hot[0]._replies
    plan = plan_by(hot, replies._old)

    conditions = {node["Index Name"]: node.get("Index Cond", "") for node in nodes(plan) if "Index Name" in node}
    assert conditions.keys() == {"reply_finished", "dead_letter_pkey"}
    assert "finished_at <" in conditions["reply_finished"]
    # Only for replies that say dead, one by one.
    assert "id = reply.id" in conditions["dead_letter_pkey"]
    assert indexes_of(plan_by(hot, replies._delete)) == {"reply_pkey"}


def test_the_mail_of_one_entity_is_counted_within_its_shard(hot: Hot) -> None:
    assert indexes_of(plan_by(hot, hot[0]._messages._count)) == {"message_ready", "message_due"}


def test_a_missing_index_would_be_found_out(hot: Hot) -> None:
    store, sent, _ = hot
    one = sent[str(store._mailboxes._candidates)]
    with store._engine("drain").connect() as conn:
        run(conn, "BEGIN")
        run(conn, "DROP INDEX entity_conformance.message_ready")
        run(conn, f"DEALLOCATE ALL; {one.statement.prepare}")
        plan = plan_of(conn, one)
        run(conn, "ROLLBACK")
        conn.invalidate()

    assert "message_ready" not in indexes_of(plan)
    assert scanned(plan) == {"message"} or "message_pkey" in indexes_of(plan)
