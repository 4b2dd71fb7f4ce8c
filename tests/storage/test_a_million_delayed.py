"""A million delayed messages are in nobody's way: what claims and looks read does not depend on how many wait.

Counted are the pages that each statement really touches, as the store sends it and on its own connections.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.storage.sql.statement import fetch, run
from entitycelery.storage.sql.store import SqlStore
from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database
from tests.storage.support import SHARD, append, change, handle_all, message, opened
from tests.storage.test_plans import Sent, indexes_of, recorded, scanned

MILLION = 1_000_000
SHARDS = [ShardId("default", number) for number in range(64)]
EVER = -1e11
# A probe of an index with a million entries goes down three or four pages; 64 shards are probed twice.
PAGES_OF_A_LOOK = 64 * 2 * 5
PAGES_OF_A_CLAIM = 2 * 5 + 100

FILL = """
    INSERT INTO {message} (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, due_at)
    SELECT md5('later' || n), nextval('{message_seq}'), 'default', n % 64, 'Account', 'later' || n, n, 'add', '{}',
           'f', clock_timestamp() + interval '1 day' + n * interval '10 ms'
    FROM generate_series(1, 1000000) n
"""

Full = tuple[SqlStore, dict[str, Sent]]


@pytest.fixture(scope="module")
def full(services: Services) -> Iterator[Full]:
    """A store in which a million messages wait until tomorrow, and the statements that it sends."""
    with fresh_postgres_database(url_or_skip(services.postgres())) as url, opened(url, shards=64) as store:
        change(store, "ALTER TABLE {message} SET UNLOGGED")
        change(store, "ALTER TABLE {message} SET (autovacuum_enabled = off)")
        change(store, "SET statement_timeout = 0;" + FILL)
        with recorded(store) as sent:
            append(store, message("a"), message("b", delay_s=0.001, capacity=10))
            store.waiting_shards(SHARDS)
            store.due_moments(dict.fromkeys(SHARDS, EVER))
            handle_all(store)
            append(store, *(message(f"r{n}") for n in range(20)))
            append(store, *(message(f"d{n}", deliver_at_epoch_s=1.0) for n in range(20)))
        yield store, sent


def explained(conn: Connection, sent: Sent) -> dict[str, Any]:
    """The plan of a statement after it was run."""
    run(conn, sent.statement.prepare)
    [(plan,)] = fetch(conn, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sent.statement.execute}", sent.parameters)
    run(conn, f"DEALLOCATE {sent.statement.name}")
    return dict((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])


def pages(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.parametrize("statistics", ["none", "fresh"])
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_what_is_read_does_not_depend_on_how_many_wait(full: Full, statistics: str, mode: str) -> None:
    store, sent = full
    if statistics == "fresh":
        change(store, "SET statement_timeout = 0; ANALYZE {message}")
    most = {
        str(store._moments._look): ({"message_due"}, PAGES_OF_A_LOOK),
        str(store._mailboxes._waiting): ({"message_ready"}, PAGES_OF_A_LOOK),
        str(store._mailboxes._candidates): ({"message_due", "message_ready"}, PAGES_OF_A_CLAIM),
        str(store._mailboxes._read): ({"message_pkey"}, PAGES_OF_A_CLAIM),
        str(store._messages._count): ({"message_ready", "message_delayed"}, PAGES_OF_A_CLAIM),
    }

    for text, (indexes, most_pages) in most.items():
        with store.engines.of(sent[text].role).connect() as conn:
            conn.info["prepared"] = set()
            run(conn, f"DEALLOCATE ALL; SET plan_cache_mode = {mode}")
            plan = explained(conn, sent[text])
            conn.invalidate()
        assert scanned(plan) == set(), text
        assert indexes_of(plan) - {"message_blocking", "in_flight_noted"} == indexes, text
        assert pages(plan) < most_pages, text


def test_a_shard_is_claimed_though_a_million_wait(full: Full) -> None:
    store, _ = full
    waiting = {one.id for one in store.pending(None, SHARD, 100_000) if one.address.id[0] in "rd"}
    assert len(waiting) == 40

    assert set(handle_all(store)) == waiting


def test_an_index_without_the_due_moment_would_be_found_out(full: Full) -> None:
    store, sent = full
    with store.engines.of("client").connect() as conn:
        run(conn, "BEGIN; SET LOCAL statement_timeout = 0; DROP INDEX entity_conformance.message_due")
        run(
            conn, "CREATE INDEX message_due ON entity_conformance.message (shard_group, shard) WHERE due_at IS NOT NULL"
        )
        conn.info["prepared"] = set()
        run(conn, "DEALLOCATE ALL")
        plan = explained(conn, sent[str(store._moments._look)])
        run(conn, "ROLLBACK")
        conn.invalidate()

    assert pages(plan) > PAGES_OF_A_LOOK
