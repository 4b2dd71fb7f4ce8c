"""Workflows: how many per second by their number of steps, how long one takes, beside DBOS on the same server; ten
thousand that sleep; a fan-out over Celery tasks.

`one by one`: one client starts them one after the other while the worker runs them, and then awaits each. `in batches`:
it stores 500 at once by `send_many`. Both from the first start until the last has ended, by the database's clock; so is
DBOS, whose client and workers are one process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg2

from benchmarks.bench import Database, Setup, fresh_database, worker
from benchmarks.flat import growth, memory

STEPS = (0, 1, 3, 9)
SLEEPERS = 10_000
TASKS = 1_000
ROUNDS = 3
_BATCH = 500
# The reply of the message that starts a workflow is its outcome.
_ENDED = "SELECT count(*) FROM entity_default.reply WHERE operation = 'start'"
_HAVE_ENDED = "SELECT count(*) = %s FROM entity_default.reply WHERE operation = 'start'"
_FIRST_AFTER_S = "SELECT extract(epoch FROM min(finished_at) - %s) FROM entity_default.reply WHERE operation = 'start'"
_LAST_AFTER_S = "SELECT extract(epoch FROM max(finished_at) - %s) FROM entity_default.reply WHERE operation = 'start'"
_PEER_DATABASE = "entitycelery_bench_peer"


def workflows(setup: Setup, dbos: Path | None) -> dict[str, float]:
    """All of it; with an interpreter that has DBOS, its figures of the same rounds too."""
    count, asks = setup.messages // 20, max(100, setup.messages // 100)
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        # In turns, since such a machine drifts.
        figures = _ours(setup, count, asks)
        if dbos is not None:
            figures.update(_peers(setup, dbos, count // 4, asks))
            for how in ("one by one", "in batches"):
                ours = figures[f"workflows/s {how}, 1 steps"]
                figures[f"one step {how}, ours / DBOS"] = ours / figures["DBOS, workflows/s, 1 steps"]
        rounds.append(figures)
    medians = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
    return {**medians, **_sleeping(setup), **_fan_out(setup)}


def _ours(setup: Setup, count: int, asks: int) -> dict[str, float]:
    from benchmarks.app import steps  # noqa: PLC0415 - reads its settings when it is imported

    figures: dict[str, float] = {}
    with fresh_database(setup) as database, worker(setup):
        _await_served(database)
        for number in STEPS:
            some = max(count // (number + 1), 50)
            figures[f"workflows/s one by one, {number} steps"] = _rate(
                database, some, lambda number=number, some=some: [steps.start(number) for _ in range(some)]
            )
            figures[f"workflows/s in batches, {number} steps"] = _rate(
                database, 4 * some, lambda number=number, some=some: _start_many(number, 4 * some)
            )
        took_ms = sorted(_took_ms(lambda: steps.start(1).result()) for _ in range(asks))
        figures["one step, p50 ms"] = statistics.median(took_ms)
        figures["one step, p99 ms"] = took_ms[int(len(took_ms) * 0.99)]
    return figures


def _took_ms(act: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    act()
    return (time.perf_counter() - begun_s) * 1000


def _peers(setup: Setup, python: Path, count: int, asks: int) -> dict[str, float]:
    admin = psycopg2.connect(f"{setup.server_url.rstrip('/')}/postgres")
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {_PEER_DATABASE} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {_PEER_DATABASE}")
        try:
            url = f"{setup.server_url.rstrip('/')}/{_PEER_DATABASE}"
            command = [str(python), str(Path(__file__).with_name("dbos_peer.py")), url, str(count), str(asks)]
            ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        finally:
            cursor.execute(f"DROP DATABASE {_PEER_DATABASE} WITH (FORCE)")
            admin.close()
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def _start_many(number: int, count: int) -> None:
    from benchmarks.app import entities, steps  # noqa: PLC0415

    for begin in range(0, count, _BATCH):
        few = range(min(_BATCH, count - begin))
        entities.send_many([steps.ref(str(uuid4())).starting(number) for _ in few])


def _rate(database: Database, count: int, start: Callable[[], object]) -> float:
    """So many workflows by the time from the first start until the last has ended."""
    [before] = database.query(_ENDED)
    [begun] = database.query("SELECT clock_timestamp()")
    start()
    database.await_true(_HAVE_ENDED, before + count)
    [spread_s] = database.query(_LAST_AFTER_S, begun)
    return count / float(spread_s)


def _sleeping(setup: Setup) -> dict[str, float]:
    from benchmarks.app import entities, sleeps  # noqa: PLC0415

    with fresh_database(setup) as database, worker(setup):
        _await_served(database)
        before = memory()
        # As long as it takes to put them to sleep, and then some.
        until = datetime.fromtimestamp(time.time() + 15 + SLEEPERS / 1_000, UTC)
        for start in range(0, SLEEPERS, _BATCH):
            entities.send_many([sleeps.ref(f"w{key}").starting(until) for key in range(start, start + _BATCH)])
        database.await_true(
            "SELECT count(*) = %s FROM entity_default.message WHERE operation = 'start' AND parked", SLEEPERS
        )
        grown = growth(before, memory())
        if datetime.now(UTC) >= until:
            raise RuntimeError("it took too long to put them to sleep")
        asked_ms = _ask_ms()
        database.await_true(_HAVE_ENDED, SLEEPERS)
        [first_s] = database.query(_FIRST_AFTER_S, until)
        [spread_s] = database.query(_LAST_AFTER_S, until)
    return {
        f"{SLEEPERS:,} sleep: ask p50 ms meanwhile": asked_ms,
        f"{SLEEPERS:,} sleep: resumed/s": SLEEPERS / float(spread_s),
        f"{SLEEPERS:,} sleep: ms until the first has ended": float(first_s) * 1000,
        **{f"{SLEEPERS:,} sleep: memory of {kind}, asleep / before": factor for kind, factor in grown.items()},
    }


def _ask_ms() -> float:
    from benchmarks.app import Account  # noqa: PLC0415

    return statistics.median(_took_ms(lambda: Account.ref("a").deposit.ask(1)) for _ in range(50))


def _fan_out(setup: Setup) -> dict[str, float]:
    from benchmarks.app import fans_out  # noqa: PLC0415

    with fresh_database(setup) as database, worker(setup):
        _await_served(database)
        took_ms = _took_ms(lambda: fans_out.start(TASKS).result(timeout_s=300))
    return {f"fan-out over {TASKS:,} Celery tasks, s": took_ms / 1000}


def _await_served(database: Database) -> None:
    from benchmarks.app import Account  # noqa: PLC0415

    database.await_true("SELECT count(*) > 0 FROM entity_default.lease WHERE holder IS NOT NULL")
    for number in range(64):
        Account.ref(f"warm{number}").deposit.ask(1)
