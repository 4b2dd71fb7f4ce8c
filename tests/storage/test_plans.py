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
from entitycelery.storage.sql.statement import Statement, fetch, run, transaction
from entitycelery.storage.sql.store import SqlStore
from entitycelery.stored_schedule import Move, NewSchedule, NextTick
from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database
from tests.storage.support import (
    OTHER_SHARD,
    SHARD,
    address,
    append,
    append_unique,
    change,
    commit_of,
    ended,
    message,
    opened,
    retried,
    shards_of,
    unique,
)

# in_flight holds a row per running drain, meta and migration a handful.
BIG = {"message", "reply", "schedule", "state", "unique_key"}

OF_FEW = {"message_blocking"}
"""Indexes of a few rows of a big table."""

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
    SELECT md5('m' || n), nextval('{message_seq}'), 'default', n % 4, 'Account', 'e' || n, n, 'add', '{}',
           CASE WHEN n % 2 = 0 THEN 'f' ELSE 'unique:' || md5(n::text) END,
           CASE WHEN n % 5 = 0 THEN clock_timestamp() + (n - 4000) * interval '1 second' END
    FROM generate_series(1, 5000) n
    """,
    """
    INSERT INTO {schedule} (name, definition, generation, origin, paused, tick, tick_at, look_at)
    SELECT 's' || n, '{}', 'g', 'api', n % 2 = 0, 't', at, at
    FROM (SELECT n, clock_timestamp() + n * interval '1 second' AS at FROM generate_series(1, 10000) n) AS s
    """,
    """
    INSERT INTO {unique_key} (name, begin_at, end_at)
    SELECT 'unique:' || md5(n::text), clock_timestamp(), clock_timestamp() + n * interval '1 second'
    FROM generate_series(1, 20000) n
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
    roles: dict[int, Role] = {id(store.engines.of(role)): role for role in ("client", "drain")}
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
    append(store, message("e7", delay_s=1.0))
    append(store, keyed)
    store.replies([first.id, keyed.id])
    store.pending_ids([first.id, keyed.id])
    store.state(address("e1"))
    store.mailbox_status(address("e1"), SHARD)
    store.waiting_shards(shards_of("default"))
    store.due_moments(dict.fromkeys(shards_of("default"), 0.0))
    with store.engines.use("raising floors") as conn:
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
    new = NewSchedule("s", "{}", "g", "api", NextTick("t", 0.0, 0.0))
    store.timetable.put([new])
    assert [one.name for one in store.timetable.due(100)[1]] == ["s"]
    assert store.timetable.first_look_s() == 0.0
    store.timetable.move([Move("s", "g", "t", NextTick("u", 1.0, 1.0), messages=(message("e1", key="t"),))])
    assert [one.name for one in store.timetable.all()] == ["s"]
    store.timetable.one("s")
    store.timetable.pause("s")
    store.timetable.remove("s")
    use_keys(store)


def use_keys(store: SqlStore) -> None:
    """What is done with keys that are mutexes."""
    first = unique("replace", for_s=60)
    append_unique(store, first)
    append_unique(store, unique("replace"))
    store.append_unique([unique("replace", key="l")], nonce="n", again=True)
    store.unique_holder(first.fingerprint)
    store.unique_holder("unique:nobody")
    with store.engines.use("waiting") as conn, transaction(conn, store.dialect.begin):
        run(conn, "SAVEPOINT unique_keys")
        store._unique_keys._wait_for(conn, [first.id])
    change(store, "UPDATE {unique_key} SET end_at = end_at - interval '1 hour'")
    assert store.purge_unique_keys(10) == 2


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


def scanned(plan: dict[str, Any], *, is_limited: bool = False) -> set[str]:
    """The big tables that are read from end to end, as a table or by an index of all of it."""
    is_limited = is_limited or plan["Node Type"] == "Limit"
    by = plan.get("Index Name")
    through_index = by not in (None, *OF_FEW) and "Index Cond" not in plan and not is_limited
    whole = plan["Node Type"] == "Seq Scan" or through_index
    found = {plan["Relation Name"]} if whole and "Relation Name" in plan else set()
    return (found & BIG).union(*(scanned(inner, is_limited=is_limited) for inner in plan.get("Plans", ())))


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
        change(store, "TRUNCATE {message}, {reply}, {state}, {schedule}, {unique_key}")
        with store.engines.of("client").connect() as client, store.engines.of("drain").connect() as drain:
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


@pytest.fixture(params=["force_generic_plan", "force_custom_plan"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["no statistics", "fresh statistics"])
def plans(hot: Hot, mode: str, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What the full tables are read by, statement by statement."""
    store, sent, connections = hot
    if request.param == "fresh statistics":
        change(store, "ANALYZE")
    for conn in connections.values():
        run(conn, "DISCARD PLANS")
        run(conn, f"SET plan_cache_mode = {mode}")
    try:
        return {text: plan_of(connections[one.role], one) for text, one in sent.items()}
    finally:
        for conn in connections.values():
            run(conn, "SET plan_cache_mode = force_generic_plan")


def test_no_statement_scans_a_full_table(plans: dict[str, dict[str, Any]]) -> None:
    bad = {text: scanned(plan) for text, plan in plans.items() if scanned(plan)}

    assert bad == {}


def test_no_statement_reads_rows_out_of_the_order_of_its_index(plans: dict[str, dict[str, Any]]) -> None:
    # A bitmap has no order: the newest version of a state would be found past all that are dead.
    bad = {text for text, plan in plans.items() if any("Bitmap" in node["Node Type"] for node in nodes(plan))}

    assert bad == set()


def plan_by(hot: Hot, statement: Statement) -> dict[str, Any]:
    _, sent, connections = hot
    one = sent[str(statement)]
    return plan_of(connections[one.role], one)


def test_due_schedules_are_found_by_when_they_are_to_be_looked_at(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._schedules._due)) == {"schedule_look"}
    assert indexes_of(plan_by(hot, store._schedules._first_look)) == {"schedule_look"}


def test_floors_rise_by_the_index_of_ready_mail(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._floors._first)) == {"message_ready"}


def test_mail_is_found_by_the_indexes_of_ready_and_of_due_mail(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._mailboxes._candidates)) >= {"message_ready", "message_due"}


def test_claimed_mail_is_read_by_its_primary_key(hot: Hot) -> None:
    assert "message_pkey" in indexes_of(plan_by(hot, hot[0]._mailboxes._read))


def test_notes_are_read_by_their_time(hot: Hot) -> None:
    assert "in_flight_noted" in indexes_of(plan_by(hot, hot[0]._mailboxes._read))


def test_waiting_shards_are_found_by_one_probe_each(hot: Hot) -> None:
    assert "message_ready" in indexes_of(plan_by(hot, hot[0]._mailboxes._waiting))


def test_due_moments_are_found_by_two_probes_each(hot: Hot) -> None:
    probes = [node for node in nodes(plan_by(hot, hot[0]._moments._look)) if node.get("Index Name") == "message_due"]

    # Each within one shard, and from one instant to another.
    assert len(probes) == 2
    for probe in probes:
        assert all(column in probe["Index Cond"] for column in ("shard_group", "shard ", "due_at >", "due_at <="))


def test_what_is_told_of_is_found_by_its_primary_key(hot: Hot) -> None:
    assert indexes_of(plan_by(hot, hot[0]._moments._tell)) == {"message_pkey"}


def test_a_keyed_send_looks_by_the_primary_keys(hot: Hot) -> None:
    messages = hot[0]._messages

    assert indexes_of(plan_by(hot, messages._withdraw_finished)) == {"message_pkey", "reply_pkey"}
    assert indexes_of(plan_by(hot, messages._look)) == {"message_pkey", "reply_pkey"}


def test_states_and_replies_are_read_by_their_primary_keys(hot: Hot) -> None:
    store = hot[0]

    assert indexes_of(plan_by(hot, store._states._of_type)) == {"state_pkey"}
    assert indexes_of(plan_by(hot, store._states._write)) == {"state_pkey"}
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


def test_who_holds_a_key_is_found_by_an_index_of_such_messages_alone(hot: Hot) -> None:
    keys = hot[0]._unique_keys

    assert indexes_of(plan_by(hot, keys._look)) == {"message_unique", "in_flight_noted"}
    assert indexes_of(plan_by(hot, keys._change)) == {"message_pkey"}
    assert indexes_of(plan_by(hot, keys._lock_free)) == {"message_pkey"}
    assert indexes_of(plan_by(hot, keys._lock)) == {"message_pkey"}
    assert indexes_of(plan_by(hot, keys._known)) == {"message_pkey", "reply_pkey"}


def test_rows_of_keys_are_found_by_their_name_and_by_the_end_of_their_time(hot: Hot) -> None:
    keys = hot[0]._unique_keys

    assert indexes_of(plan_by(hot, keys._keep)) == {"unique_key_pkey"}
    assert indexes_of(plan_by(hot, keys._of_window)) == {"unique_key_pkey"}
    assert indexes_of(plan_by(hot, keys._unused)) == {"unique_key_end"}
    assert indexes_of(plan_by(hot, keys._remove)) == {"unique_key_pkey"}


def test_the_mail_of_one_entity_is_counted_within_its_shard(hot: Hot) -> None:
    assert indexes_of(plan_by(hot, hot[0]._messages._count)) == {"message_ready", "message_delayed"}


def test_rows_of_locks_are_found_by_their_indexes(rows_url: str) -> None:
    held = """
        INSERT INTO {lock} (kind, key, token, expires_at)
        SELECT CASE n % 2 WHEN 0 THEN 'claim' ELSE 'attention' END, CAST(n AS text), CAST(n / 100 AS text),
               clock_timestamp() + interval '1 hour'
        FROM generate_series(1, 20000) n
    """
    given = {"token": "7", "tokens": ["7", "8"], "keys": ["3", "4"], "key": "4", "shard": "5", "lease_s": 10}
    found: dict[str, set[str]] = {}

    with opened(rows_url) as store, store.engines.of("drain").connect() as conn:
        change(store, held)
        change(store, "ANALYZE {lock}")
        for name, statement in vars(store._locks).items():
            if isinstance(statement, Statement) and name != "_remove_expired":
                [(plan,)] = fetch(conn, f"EXPLAIN (FORMAT JSON) {statement}", given)
                read = list(nodes(plan[0]["Plan"]))
                assert not [node for node in read if node["Node Type"] == "Seq Scan"], name
                found[name] = indexes_of(plan[0]["Plan"])

    assert found == {
        "_claim": {"lock_claim"},
        "_release": {"lock_claim"},
        "_release_all": {"lock_token"},
        "_extend": {"lock_token"},
        "_attend": set(),
        "_forsake": {"lock_attention"},
        "_attended": {"lock_attention"},
        "_is_attended": {"lock_attention"},
        "_is_claimed": {"lock_claim"},
    }


def test_a_missing_index_would_be_found_out(hot: Hot) -> None:
    store, sent, _ = hot
    one = sent[str(store._mailboxes._candidates)]
    with store.engines.of("drain").connect() as conn:
        run(conn, "BEGIN")
        run(conn, "DROP INDEX entity_conformance.message_ready")
        run(conn, f"DEALLOCATE ALL; {one.statement.prepare}")
        plan = plan_of(conn, one)
        run(conn, "ROLLBACK")
        conn.invalidate()

    assert "message_ready" not in indexes_of(plan)
    assert scanned(plan) == {"message"} or "message_pkey" in indexes_of(plan)
