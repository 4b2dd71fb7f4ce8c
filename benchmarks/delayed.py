"""Delayed messages: how late they are handled, and whether a million others that wait make a difference.

Lateness is the time from the moment at which a message is due until its reply is written, both by the database's clock.
Messages become due one by one, far enough apart that each finds an idle worker. The burst is a backlog that becomes due
at one moment.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from benchmarks.bench import Database, Setup, fresh_database, worker
from benchmarks.flat import growth, memory

POOLS = ("prefork", "threads", "solo")
APART_S = 0.05
ROUNDS = 3
_ACCOUNTS = 10_000
_BATCH = 500
_FIRST_IN_S = 1.0
# Rows as senders write them, due some time tomorrow, in all shards.
_FILL = """
    INSERT INTO entity_default.message (id, seq, shard_group, shard, type, entity_id, lock_key, operation, args,
                                        fingerprint, due_at)
    SELECT md5('later' || n), nextval('entity_default.message_seq'), 'default', n %% 64, 'Account', 'later' || n, n,
           'deposit', '{"amount": 1}', md5(n::text), clock_timestamp() + interval '1 day' + n * interval '10 ms'
    FROM generate_series(1, %s) n
"""
_LATENESS_MS = """
    SELECT extract(epoch FROM r.finished_at - d.due_at) * 1000
    FROM unnest(%s, %s::timestamptz[]) AS d(id, due_at) JOIN entity_default.reply AS r USING (id)
"""
_ARE_ANSWERED = "SELECT count(*) = %s FROM entity_default.reply WHERE finished_at > %s"


def delayed(setup: Setup) -> dict[str, float]:
    """Lateness by broker and pool while others wait; the burst with and without them; memory before and after."""
    others = setup.messages * 25
    figures: dict[str, float] = {}
    for name, url in _brokers(setup).items():
        for pool in POOLS:
            figures.update(_lateness(replace(setup, broker=url), f"{name}, {pool}", pool, others))
    # In turns, since such a machine drifts.
    pairs = [(_burst(setup, 0)[0], *_burst(setup, others)) for _ in range(ROUNDS)]
    return {
        **figures,
        "due at one moment, handled/s, no others": statistics.median(alone for alone, _, _ in pairs),
        f"due at one moment, handled/s, {others:,} others": statistics.median(beside for _, beside, _ in pairs),
        f"{others:,} others / none, median of pairs": statistics.median(beside / alone for alone, beside, _ in pairs),
        **{f"memory of {kind}, {others:,} others stored / before": factor for kind, factor in pairs[-1][2].items()},
    }


def _brokers(setup: Setup) -> dict[str, str]:
    """The broker that was named, and the Redis that is there for Celery's results."""
    found = {setup.broker.partition(":")[0]: setup.broker}
    if setup.backend.startswith("redis"):
        found.setdefault("redis", setup.backend)
    return found


def _lateness(setup: Setup, label: str, pool: str, others: int) -> dict[str, float]:
    with fresh_database(setup) as database:
        _fill(database, others)
        with worker(setup, "-P", pool):
            _await_served(database)
            late_ms = sorted(_one_by_one(database, count=max(100, setup.messages // 100)))
    return {
        f"lateness, {label}, p50 ms": statistics.median(late_ms),
        f"lateness, {label}, p99 ms": late_ms[int(len(late_ms) * 0.99)],
        f"lateness, {label}, least ms": late_ms[0],
    }


def _one_by_one(database: Database, count: int) -> list[float]:
    """Store messages that become due one after the other, each somewhat before its moment; how late they were."""
    from benchmarks.app import Account  # noqa: PLC0415 - reads its settings when it is imported

    begun = _now(database)
    ids, moments = [], []
    for number in range(count):
        due_s = begun.timestamp() + _FIRST_IN_S + number * APART_S
        time.sleep(max(0.0, due_s - _FIRST_IN_S - _now(database).timestamp()))
        due_at = datetime.fromtimestamp(due_s, UTC)
        ids.append(Account.ref(f"a{number}").deposit.options(deliver_at=due_at).send(1).id)
        moments.append(due_at)
    database.await_true(_ARE_ANSWERED, count, begun)
    return [float(late_ms) for (late_ms,) in database.rows(_LATENESS_MS, ids, moments)]


def _burst(setup: Setup, others: int) -> tuple[float, dict[str, float]]:
    """Handled per second of a backlog that becomes due at once; by how much each kind of process has grown."""
    from benchmarks.app import Account, entities  # noqa: PLC0415

    with fresh_database(setup) as database, worker(setup):
        _await_served(database)
        before = memory()
        _fill(database, others)
        # As long as it takes to store them, and then some.
        begun = _now(database)
        due_at = datetime.fromtimestamp(begun.timestamp() + 5.0 + setup.messages / 4_000, UTC)
        for start in range(0, setup.messages, _BATCH):
            numbers = range(start, min(start + _BATCH, setup.messages))
            calls: list[Any] = [
                Account.ref(f"a{number % _ACCOUNTS}").deposit.options(deliver_at=due_at).prepare(1)
                for number in numbers
            ]
            entities.send_many(calls)
        if _now(database) >= due_at:
            raise RuntimeError("it took too long to store what was to become due at once")
        grown = growth(before, memory())
        database.await_true(_ARE_ANSWERED, setup.messages, begun)
        [spread_s] = database.query(
            "SELECT extract(epoch FROM max(finished_at) - %s) FROM entity_default.reply WHERE finished_at > %s",
            due_at,
            begun,
        )
    return setup.messages / float(spread_s), grown


def _await_served(database: Database) -> None:
    """Wait until the worker hosts all shards, and has handled something."""
    from benchmarks.app import Account, entities  # noqa: PLC0415

    shards = entities.settings.shards_per_group
    database.await_true("SELECT count(*) = %s FROM entity_default.lease WHERE holder IS NOT NULL", shards)
    for sent in entities.send_many([Account.ref(f"warm{number}").deposit.prepare(1) for number in range(shards)]):
        sent.result()


def _fill(database: Database, others: int) -> None:
    database.query(_FILL, others)
    database.query("VACUUM ANALYZE entity_default.message")
    # A million rows at once are not what is measured: without it the disk is busy with them for a minute.
    database.query("CHECKPOINT")


def _now(database: Database) -> datetime:
    [now] = database.query("SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    return now
