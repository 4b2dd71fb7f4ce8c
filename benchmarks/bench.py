"""The measurements. Each works on a database of its own and gives its figures as plain numbers."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Setup:
    """Where to measure: servers, pool processes, and how much."""

    server_url: str
    broker: str
    backend: str
    processes: int
    messages: int

    @property
    def database_url(self) -> str:
        return f"{self.server_url.rstrip('/')}/entitycelery_bench"

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ENTITY_DATABASE_URL": self.database_url,
            "BENCH_BROKER": self.broker,
            "BENCH_BACKEND": self.backend,
            "BENCH_PLAIN_DSN": self.database_url,
        }


@contextlib.contextmanager
def fresh_database(setup: Setup) -> Iterator[None]:
    """A new database with the schema, dropped at the end."""
    admin = psycopg2.connect(f"{setup.server_url.rstrip('/')}/postgres")
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("DROP DATABASE IF EXISTS entitycelery_bench WITH (FORCE)")
        cursor.execute("CREATE DATABASE entitycelery_bench")
        from benchmarks.app import entities  # noqa: PLC0415 - reads its settings when it is imported

        entities.store.upgrade()
        query(setup, "CREATE TABLE plain (id text PRIMARY KEY, balance bigint NOT NULL)")
        query(setup, "CREATE TABLE plain_done (at timestamptz NOT NULL)")
        try:
            yield
        finally:
            entities.close()
            cursor.execute("DROP DATABASE entitycelery_bench WITH (FORCE)")
            admin.close()


@contextlib.contextmanager
def worker(setup: Setup, *options: str) -> Iterator[None]:
    """A real `celery worker`, ready."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "-c", str(setup.processes)]
    log = Path(f"bench-worker-{os.getpid()}.log")
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "-l", "WARNING", *options],
            env=setup.environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_ping(process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.unlink(missing_ok=True)


def _await_ping(process: subprocess.Popen[bytes], log: Path) -> None:
    from benchmarks.app import app  # noqa: PLC0415

    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not app.control.ping(timeout=0.5):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not start:\n{log.read_text()}")


def query(setup: Setup, statement: str) -> Any:
    """Run one statement and return its first row, if any."""
    with contextlib.closing(psycopg2.connect(setup.database_url)) as conn, conn, conn.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def _await_count(setup: Setup, statement: str, wanted: int, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while query(setup, statement)[0] < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done in {timeout_s} s: {statement}")
        time.sleep(0.1)


def _calls(count: int, accounts: int) -> list[Any]:
    from benchmarks.app import Account  # noqa: PLC0415

    return [Account.ref(f"a{index % accounts}").deposit.prepare(1) for index in range(count)]


def _send_all(count: int, accounts: int, batch: int = 500) -> float:
    from benchmarks.app import entities  # noqa: PLC0415

    begun = time.perf_counter()
    for start in range(0, count, batch):
        entities.send_many(_calls(min(batch, count - start), accounts))
    return time.perf_counter() - begun


def handled_per_s(setup: Setup, accounts: int) -> float:
    """Messages handled per second from a backlog, by the times at which their replies were written."""
    with fresh_database(setup):
        _send_all(setup.messages, accounts)
        with worker(setup):
            _await_count(setup, "SELECT count(*) FROM entity_default.reply", setup.messages)
        [spread_s] = query(
            setup, "SELECT extract(epoch FROM max(finished_at) - min(finished_at)) FROM entity_default.reply"
        )
    return setup.messages / float(spread_s)


def steady_per_s(setup: Setup, accounts: int) -> float:
    """Messages handled per second while one sender stores batches of 100 as fast as it can, side by side."""
    from benchmarks.app import entities  # noqa: PLC0415

    with fresh_database(setup), worker(setup):
        sent = 0
        marks: list[tuple[float, int]] = []
        # A quarter to warm up, then what was handled between two looks: sent and no longer pending.
        while not marks or sent < marks[0][1] + setup.messages:
            for _ in range(10):
                entities.send_many(_calls(100, accounts))
                sent += 100
            while (pending := query(setup, "SELECT count(*) FROM entity_default.message")[0]) > 5_000:
                time.sleep(0.02)
            if sent >= setup.messages // 4:
                marks.append((time.perf_counter(), sent - pending))
    (begun, before), (ended, after) = marks[0], marks[-1]
    return (after - before) / (ended - begun)


def sends_per_s(setup: Setup) -> dict[str, float]:
    """Single sends per second from one client, and messages per second by send_many in batches of 500."""
    from benchmarks.app import Account  # noqa: PLC0415

    count = max(500, setup.messages // 10)
    with fresh_database(setup):
        begun = time.perf_counter()
        for index in range(count):
            Account.ref(f"a{index}").deposit.send(1)
        single = count / (time.perf_counter() - begun)
        many = setup.messages / _send_all(setup.messages, 10_000)
    return {"single sends/s": single, "send_many/s": many}


def idle_ask_ms(setup: Setup, rounds: int = 300) -> dict[str, float]:
    """Latency of an ask on an idle system beside Celery's own `delay().get()`, taken in turns."""
    from benchmarks.app import Account, echo  # noqa: PLC0415

    alice = Account.ref("alice")
    with fresh_database(setup), worker(setup):
        ask = _timed(lambda: alice.deposit.ask(1))
        get = _timed(lambda: echo.delay(1).get(timeout=30))
        for _ in range(20):
            ask(), get()
        pairs = [(ask(), get()) for _ in range(rounds)]
    asks, gets = sorted(a for a, _ in pairs), sorted(g for _, g in pairs)
    return {
        "ask p50 ms": statistics.median(asks),
        "ask p99 ms": asks[int(rounds * 0.99)],
        "celery get p50 ms": statistics.median(gets),
        "celery get p99 ms": gets[int(rounds * 0.99)],
        "ask / celery get, median of pairs": statistics.median(a / g for a, g in pairs),
    }


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        begun = time.perf_counter()
        call()
        return (time.perf_counter() - begun) * 1000

    return run


def plain_per_s(setup: Setup) -> float:
    """Plain Celery doing the same job, one UPDATE per task, from a backlog."""
    from benchmarks.app import app, plain_deposit  # noqa: PLC0415

    count = max(500, setup.messages // 10)
    with fresh_database(setup):
        app.control.purge()
        for index in range(count):
            plain_deposit.delay(f"a{index % 10_000}", 1)
        with worker(setup, "--without-entities"):
            _await_count(setup, "SELECT count(*) FROM plain_done", count)
        [spread_s] = query(setup, "SELECT extract(epoch FROM max(at) - min(at)) FROM plain_done")
    return count / float(spread_s)
