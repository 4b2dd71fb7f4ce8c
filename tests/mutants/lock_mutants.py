"""Locks, broken, where tests/storage/test_protocol_locks.py and test_protocol_claims.py do not do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.storage.sql import migration
from entitycelery.storage.sql.dialects.expiring import ExpiringRowLocks
from entitycelery.storage.sql.dialects.postgresql import AdvisoryLocks, PostgreSQL
from entitycelery.storage.sql.dialects.sqlite import RowLocks
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.statement import fetch, run
from tests.mutants.mutant import Mutant, around, no_op


def _attention_is_exclusive(patch: pytest.MonkeyPatch) -> None:
    def attend(self: AdvisoryLocks, conn: Connection, token: str, shards: Sequence[ShardId]) -> None:
        run(conn, "SELECT pg_advisory_lock(g, n) FROM unnest(%(g)s, %(n)s) AS u(g, n)", self._keys(shards))

    patch.setattr(AdvisoryLocks, "attend", attend)


def _asking_attends(patch: pytest.MonkeyPatch) -> None:
    def attended(self: AdvisoryLocks, conn: Connection, shards: Sequence[ShardId]) -> set[ShardId]:
        asked = "SELECT pg_try_advisory_lock(g, n) FROM unnest(%(g)s::int[], %(n)s::int[]) AS u(g, n)"
        rows = fetch(conn, asked, self._keys(shards))
        return {shard for shard, (granted,) in zip(shards, rows, strict=True) if not granted}

    patch.setattr(AdvisoryLocks, "attended", attended)


def _a_look_is_a_claim(patch: pytest.MonkeyPatch) -> None:
    def is_claimed(self: AdvisoryLocks, conn: Connection, key: int) -> bool:
        return not fetch(conn, "SELECT pg_try_advisory_lock(%(key)s)", {"key": key})[0][0]

    patch.setattr(AdvisoryLocks, "is_claimed", is_claimed)


def _a_look_is_a_claim_for_a_moment(patch: pytest.MonkeyPatch) -> None:
    def is_claimed(self: AdvisoryLocks, conn: Connection, key: int) -> bool:
        [(granted,)] = fetch(conn, "SELECT pg_try_advisory_lock(%(key)s)", {"key": key})
        if granted:
            run(conn, "SELECT pg_advisory_unlock(%(key)s)", {"key": key})
        return not granted

    patch.setattr(AdvisoryLocks, "is_claimed", is_claimed)


def _sessions_stay_open(patch: pytest.MonkeyPatch) -> None:
    def end(real: Callable[..., None], self: SqlDrainSession) -> None:
        no_op(patch, self._conn, "invalidate")
        real(self)

    around(patch, SqlDrainSession, "end", end)


def _abandoned_rows_stay(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, RowLocks, "abandon")


def _rows_of_dead_processes_stay(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, RowLocks, "remove_dead")


def _expired_rows_stay(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, ExpiringRowLocks, "remove_dead")


def _silent_drains_keep_their_rows(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, ExpiringRowLocks, "evict")


def _seq_is_drawn_again(patch: pytest.MonkeyPatch) -> None:
    def read(real: Callable[..., Any], name: str) -> list[migration.Migration]:
        return [msgspec.structs.replace(one, sql=one.sql.replace(" AUTOINCREMENT", "")) for one in real(name)]

    around(patch, migration, "migrations", read)


def _no_concern(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PostgreSQL, "concerns", lambda self, conn, locks: [])


LOCK_MUTANTS = [
    Mutant(
        "attention-is-exclusive",
        "Many drains attend one shard.",
        _attention_is_exclusive,
        ("tests/storage/test_protocol_locks.py::test_many_drains_attend_one_shard_at_once[postgresql]",),
    ),
    Mutant(
        "asking-attends",
        "Who asks for attention holds it for one statement only.",
        _asking_attends,
        ("tests/storage/test_protocol_locks.py::test_asking_for_attention_leaves_no_lock_behind",),
    ),
    Mutant(
        "a-look-is-a-claim",
        "Whether an entity is claimed is read, not tried.",
        _a_look_is_a_claim,
        (
            "tests/storage/test_claims.py::test_looking_at_a_status_is_no_claim[postgresql]",
            "tests/storage/test_protocol_locks.py::test_a_look_at_a_status_keeps_no_drain_from_its_mail",
        ),
    ),
    Mutant(
        "a-look-is-a-claim-for-a-moment",
        "Whether an entity is claimed is read, not tried for a moment.",
        _a_look_is_a_claim_for_a_moment,
        ("tests/storage/test_protocol_locks.py::test_a_look_at_a_status_keeps_no_drain_from_its_mail",),
    ),
    Mutant(
        "sessions-stay-open",
        "A session that cannot release its claims is closed.",
        _sessions_stay_open,
        (
            "tests/storage/test_claims.py::"
            "test_claims_that_could_not_be_released_are_free_for_the_next_drain_of_the_process[postgresql]",
        ),
    ),
    Mutant(
        "abandoned-rows-stay",
        "On SQLite the next claim of the process removes rows that could not be released.",
        _abandoned_rows_stay,
        (
            "tests/storage/test_claims.py::"
            "test_claims_that_could_not_be_released_are_free_for_the_next_drain_of_the_process[sqlite]",
        ),
    ),
    Mutant(
        "rows-of-dead-processes-stay",
        "On SQLite rows and files of dead processes are removed.",
        _rows_of_dead_processes_stay,
        (
            "tests/storage/test_crashes.py::test_locks_of_a_dead_process_are_removed_and_those_of_a_living_one_stay",
            "tests/storage/test_crashes.py::test_files_of_dead_processes_are_removed_and_those_of_living_ones_stay",
        ),
    ),
    Mutant(
        "expired-rows-stay",
        "Where claims expire, the runner removes what has expired.",
        _expired_rows_stay,
        ("tests/storage/test_protocol_rows.py::test_what_has_expired_is_removed_and_nothing_else",),
    ),
    Mutant(
        "silent-drains-keep-their-rows",
        "Where claims expire, the runner takes those of a drain that has been silent.",
        _silent_drains_keep_their_rows,
        ("tests/storage/test_protocol_rows.py::test_a_drain_that_was_found_silent_loses_its_claims",),
    ),
    Mutant(
        "seq-is-drawn-again",
        "On SQLite a seq is never drawn again, though its message is gone.",
        _seq_is_drawn_again,
        ("tests/storage/test_dead_letters.py::test_no_two_letters_have_the_same_place[sqlite]",),
    ),
    Mutant(
        "no-concern",
        "The start warns when drains may need more locks than a quarter of the server's.",
        _no_concern,
        ("tests/storage/test_concerns.py::test_more_locks_than_a_quarter_of_the_servers_are_a_concern",),
    ),
]
