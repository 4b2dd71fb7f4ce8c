"""A state is found past a bounded number of its earlier versions, however many of them vacuum cannot remove yet.

Each body also runs with the rule broken, and must then read past all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from entitycelery.address import Address
from entitycelery.message import EntityCommit
from entitycelery.storage.sql.statement import fetch, transaction
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import rewrite
from tests.storage.support import address, held_snapshot, pages_read

VERSIONS = 320
# Of many entities that change in turn, so that the versions of one lie on many pages.
ADDRESSES = [address(name) for name in ("a", *(f"e{n:02}" for n in range(40)))]
# What one era and the way down the index take, on pages of their own in the worst case.
FEW = 40


def version_after(version: int, of: Address) -> EntityCommit:
    return EntityCommit(of, 1, version, 1, json.dumps({"n": version + 1, "text": "x" * 50}), ())


def changed_again_and_again(store: SqlStore, addresses: Sequence[Address] = ADDRESSES) -> None:
    with store.engines.use("committing states") as conn:
        for version in range(VERSIONS):
            with transaction(conn, store.dialect.begin):
                won = store._states.write(conn, [version_after(version, one) for one in addresses])
                assert won == set(addresses)


def pages_for_a_state(store: SqlStore) -> int:
    return pages_read(store, store._states._of_type, type="Account", ids=["a"])


def pages_for_a_commit(store: SqlStore) -> int:
    rows = store.dialect.rows(
        [{"type": "Account", "entity_id": "a", "version": VERSIONS, "state_version": 1, "state": "{}"}]
    )
    return pages_read(store, store._states._write, rows=rows)


def test_a_state_is_read_past_few_of_its_versions(postgres: SqlStore) -> None:
    with held_snapshot(postgres):
        changed_again_and_again(postgres)

        assert pages_for_a_state(postgres) < FEW
        assert postgres.state(address()).version == VERSIONS


def test_a_state_is_written_past_few_of_its_versions(postgres: SqlStore) -> None:
    with held_snapshot(postgres):
        changed_again_and_again(postgres)

        assert pages_for_a_commit(postgres) < 2 * FEW
        assert postgres.state(address()).version == VERSIONS + 1


def test_if_the_oldest_era_came_first_all_versions_would_be_read_past(postgres: SqlStore) -> None:
    with held_snapshot(postgres):
        changed_again_and_again(postgres)
        rewrite(postgres, "ORDER BY era DESC", "ORDER BY era")

        assert pages_for_a_state(postgres) > FEW
        assert pages_for_a_commit(postgres) > 2 * FEW


def test_a_version_within_an_era_touches_no_index(postgres: SqlStore) -> None:
    changed_again_and_again(postgres, [address()])
    with postgres.engines.use("asking") as conn:
        fetch(conn, "SELECT pg_stat_force_next_flush()")
        [(updates, hot)] = fetch(
            conn,
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
            "WHERE relname = 'state' AND schemaname = %(schema)s",
            {"schema": postgres.dialect.schema},
        )

    assert updates == VERSIONS - 1
    assert hot > updates * 0.9
