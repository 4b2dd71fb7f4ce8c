"""A long run: whether the last messages of a million are handled as fast, and with as much memory, as the first.

A sender keeps some thousand messages pending. Rate and memory are noted at every tenth of the way. With `held`, a
transaction with a snapshot stays open on another connection from before the first message to after the last: nothing
that dies meanwhile can be removed by vacuum. With `hour`, that snapshot has seen an hour of load already, of which what
a claim could have to read past is there when the run begins: notes of batches, and delayed messages.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import psutil
import psycopg2

from benchmarks.bench import Database, Setup, fresh_database, send_batch, worker, worker_processes

ACCOUNTS = 10_000
PARTS = 10
_PENDING_AT_MOST = 5_000
_BATCH = 100
_ARE_ANSWERED = "SELECT count(*) = cardinality(%s) FROM entity_default.reply WHERE id = ANY(%s)"
_NOTED = 20
_DEAD = (
    "INSERT INTO entity_default.in_flight (token, message_ids, noted_at) "
    "SELECT 'n' || n, (SELECT json_agg(md5(i::text || n)) FROM generate_series(1, %(noted)s) AS i), "
    "clock_timestamp() - (1 - n::float8 / %(notes)s) * interval '1 hour' FROM generate_series(1, %(notes)s) AS n",
    "DELETE FROM entity_default.in_flight WHERE token LIKE 'n%%'",
    "INSERT INTO entity_default.message "
    "(id, seq, shard_group, shard, type, entity_id, lock_key, operation, args, fingerprint, due_at) "
    "SELECT 'd' || n, nextval('entity_default.message_seq'), 'default', n %% 16, 'Account', 'd' || n %% 10000, 1, "
    "'deposit', '{}', 'f', clock_timestamp() - (1 - n::float8 / %(delays)s) * interval '1 hour' "
    "FROM generate_series(1, %(delays)s) AS n",
    "DELETE FROM entity_default.message WHERE id LIKE 'd%%'",
)
_TABLES = ("message", "reply", "state", "in_flight")


@dataclass(frozen=True)
class Hour:
    """What an hour of load had: batches, each of which noted what it ran, and messages that were delayed or retried."""

    notes: int
    delays: int


@dataclass(frozen=True)
class Mark:
    """How far the run had come at one moment, and how much memory each process held, by its place in the tree."""

    at_s: float
    handled: int
    memory_bytes: dict[str, int]


def flat(setup: Setup, messages: int, *, held: bool = False, hour: Hour | None = None) -> dict[str, float]:
    """The figures of one long run of so many messages."""
    with fresh_database(setup) as database, worker(setup), _old_transaction(setup, held):
        if hour:
            _leave_dead(setup, hour)
        marks = _run(database, messages)
        figures = _figures(marks)
        figures.update(_table_figures(database))
    label = f"{messages:,} messages{', snapshot held' if held else ''}{' for an hour' if hour else ''}"
    return {f"{label}: {name}": value for name, value in figures.items()}


def _run(database: Database, messages: int) -> list[Mark]:
    part = messages // PARTS
    sent = handled = 0
    # The first part begins when the worker is warm, so that both ends are like each other.
    warm_up = part // 5
    marks: list[Mark] = []
    unanswered: deque[list[str]] = deque()
    while handled < warm_up + messages:
        while sent - handled < _PENDING_AT_MOST:
            unanswered.append(send_batch(_BATCH, ACCOUNTS, sent))
            sent += _BATCH
        # By primary key: to count what is pending would read past all that is dead, and be the load itself.
        while unanswered and database.query(_ARE_ANSWERED, unanswered[0], unanswered[0])[0]:
            unanswered.popleft()
            handled += _BATCH
        if handled >= warm_up + len(marks) * part:
            marks.append(Mark(time.perf_counter(), handled, memory()))
        if sent - handled >= _PENDING_AT_MOST:
            time.sleep(0.005)
    return marks


def memory() -> dict[str, int]:
    """Memory that each process of the worker has for itself, in bytes."""
    found: dict[str, int] = {}
    [parent, *others] = worker_processes()
    for process in [parent, *others]:
        with contextlib.suppress(psutil.NoSuchProcess):
            is_runner = "entitycelery.worker.runner" in " ".join(process.cmdline())
            kind = "parent" if process == parent else "runner process" if is_runner else "pool process"
            found[f"{kind} {process.pid}"] = process.memory_full_info().uss
    return found


def growth(first: dict[str, int], last: dict[str, int]) -> dict[str, float]:
    """By kind of process the largest growth of one of them, as a factor."""
    grown: dict[str, float] = {}
    for name in first.keys() & last.keys():
        kind = name.rpartition(" ")[0]
        grown[kind] = max(grown.get(kind, 0.0), last[name] / first[name])
    return dict(sorted(grown.items()))


def _figures(marks: list[Mark]) -> dict[str, float]:
    rates = [(b.handled - a.handled) / (b.at_s - a.at_s) for a, b in pairwise(marks)]
    first, last = marks[1].memory_bytes, marks[-1].memory_bytes
    return {
        "handled/s in the first tenth": rates[0],
        "handled/s in the last tenth": rates[-1],
        "last / first": rates[-1] / rates[0],
        "slowest / fastest tenth": min(rates) / max(rates),
        **{f"memory of {kind}, last / first": factor for kind, factor in growth(first, last).items()},
        "memory, all processes, MiB": sum(last.values()) / 2**20,
    }


def _table_figures(database: Database) -> dict[str, float]:
    figures = {}
    for table in _TABLES:
        [size, dead] = database.query(
            "SELECT pg_total_relation_size(c.oid), pg_stat_get_dead_tuples(c.oid) FROM pg_class AS c "
            "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'entity_default' AND c.relname = %s",
            table,
        )
        figures[f"{table}, MiB"] = size / 2**20
        figures[f"{table}, dead tuples"] = float(dead)
    return figures


@contextlib.contextmanager
def _old_transaction(setup: Setup, held: bool) -> Iterator[None]:
    if not held:
        yield
        return
    with contextlib.closing(psycopg2.connect(setup.database_url)) as conn, conn.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM entity_default.message")
        yield
        # Still the same snapshot: had the server ended it, this would fail.
        cursor.execute("SELECT count(*) FROM entity_default.message")


def _leave_dead(setup: Setup, hour: Hour) -> None:
    """What was handled within the last hour and vacuum cannot remove, where a claim could have to read past it."""
    with contextlib.closing(psycopg2.connect(setup.database_url)) as conn, conn, conn.cursor() as cursor:
        # In one transaction: no sweep is to take the notes for those of drains that have died, and nothing is to run.
        for statement in _DEAD:
            cursor.execute(statement, {"notes": hour.notes, "delays": hour.delays, "noted": _NOTED})
