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

import psutil
import psycopg2
from celery import Celery

_READY_TIMEOUT_S = 60.0
_DATABASE = "entitycelery_bench"


@dataclass(frozen=True)
class Setup:
    """Where to measure: servers, pool processes, and how much."""

    server_url: str
    broker: str
    backend: str
    processes: int
    messages: int
    picture: Path | None = None
    dbos: Path | None = None

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
def fresh_database(setup: Setup) -> Iterator[Database]:
    """A new database with the schema, dropped at the end."""
    admin = psycopg2.connect(f"{setup.server_url.rstrip('/')}/postgres")
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("DROP DATABASE IF EXISTS entitycelery_bench WITH (FORCE)")
        cursor.execute("CREATE DATABASE entitycelery_bench")
        from benchmarks.app import entities  # noqa: PLC0415 - reads its settings when it is imported

        entities.store.schema.upgrade()
        database = Database(setup)
        database.query("CREATE TABLE plain (id text PRIMARY KEY, balance bigint NOT NULL)")
        database.query("CREATE TABLE plain_done (at timestamptz NOT NULL)")
        try:
            yield database
        finally:
            entities.close()
            database.close()
            cursor.execute("DROP DATABASE entitycelery_bench WITH (FORCE)")
            admin.close()


class Database:
    """The measured database, seen over one connection of its own."""

    def __init__(self, setup: Setup) -> None:
        self._conn = psycopg2.connect(setup.database_url)
        self._conn.autocommit = True

    def query(self, statement: str, *parameters: Any) -> Any:
        """Run one statement and return its first row, if any."""
        with self._conn.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchone() if cursor.description else None

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows."""
        with self._conn.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    def await_true(self, statement: str, *parameters: Any, timeout_s: float = 300.0) -> None:
        """Wait until a query says true."""
        deadline = time.monotonic() + timeout_s
        while not self.query(statement, *parameters)[0]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not so in {timeout_s} s: {statement}")
            time.sleep(0.05)

    def close(self) -> None:
        self._conn.close()


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
        _await_ping(setup, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.unlink(missing_ok=True)


def _await_ping(setup: Setup, process: subprocess.Popen[bytes], log: Path) -> None:
    # Not the app under measurement: the worker may be on another broker than its senders.
    with Celery("ping", broker=setup.broker, set_as_current=False) as app:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not app.control.ping(timeout=0.5):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not start:\n{log.read_text()}")


def _calls(count: int, accounts: int, first: int = 0) -> list[Any]:
    from benchmarks.app import Account  # noqa: PLC0415

    return [Account.ref(f"a{index % accounts}").deposit.prepare(1) for index in range(first, first + count)]


def send_batch(count: int, accounts: int, first: int) -> list[str]:
    """Store messages for so many entities in turn, the first with the number `first`; their ids."""
    from benchmarks.app import entities  # noqa: PLC0415

    return [sent.id for sent in entities.send_many(_calls(count, accounts, first))]


def worker_processes() -> list[psutil.Process]:
    """The processes of the worker under measurement."""
    return [process for process in psutil.Process().children(recursive=True) if process.is_running()]


def send_backlog(count: int, accounts: int, batch: int = 500) -> float:
    """Store so many messages for so many entities; how many seconds it took."""
    begun = time.perf_counter()
    for start in range(0, count, batch):
        send_batch(min(batch, count - start), accounts, start)
    return time.perf_counter() - begun


def handled_per_s(setup: Setup, accounts: int) -> float:
    """Messages handled per second from a backlog, by the times at which their replies were written."""
    with fresh_database(setup) as database:
        send_backlog(setup.messages, accounts)
        with worker(setup):
            database.await_true("SELECT NOT EXISTS (SELECT 1 FROM entity_default.message)")
        [handled, spread_s] = database.query(
            "SELECT count(*), extract(epoch FROM max(finished_at) - min(finished_at)) FROM entity_default.reply"
        )
    return float(handled) / float(spread_s)


def processor_us(setup: Setup, accounts: int) -> dict[str, float]:
    """Processor time for each message handled from a backlog, by kind of process, in microseconds."""
    with fresh_database(setup) as database:
        send_backlog(setup.messages, accounts)
        with worker(setup):
            before, pending = _spent_s(), database.query("SELECT count(*) FROM entity_default.message")[0]
            database.await_true("SELECT NOT EXISTS (SELECT 1 FROM entity_default.message)")
            after = _spent_s()
    return {f"processor us, {kind}": (after[kind] - before[kind]) * 1e6 / pending for kind in after}


def _spent_s() -> dict[str, float]:
    spent = dict.fromkeys(("worker", "PostgreSQL"), 0.0)
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        kind = "worker" if "benchmarks.app worker" in command else "PostgreSQL" if _DATABASE in command else None
        if kind is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                spent[kind] += sum(process.cpu_times()[:2])
    return spent


def steady_per_s(setup: Setup, accounts: int) -> float:
    """Messages handled per second while one sender stores batches of 100 as fast as it can, side by side."""
    with fresh_database(setup) as database, worker(setup):
        sent = 0
        marks: list[tuple[float, int]] = []
        # A quarter to warm up, then what was handled between two looks: sent and no longer pending.
        while not marks or sent < marks[0][1] + setup.messages:
            for _ in range(10):
                send_batch(100, accounts, sent)
                sent += 100
            while (pending := database.query("SELECT count(*) FROM entity_default.message")[0]) > 5_000:
                time.sleep(0.02)
            if sent >= setup.messages // 4:
                marks.append((time.perf_counter(), sent - pending))
    (begun, before), (ended, after) = marks[0], marks[-1]
    return (after - before) / (ended - begun)


def sends_per_s(setup: Setup) -> dict[str, float]:
    """Messages stored per second by one client, beside bare INSERTs of the same row in autocommit mode."""
    from benchmarks.app import Account  # noqa: PLC0415

    count = max(500, setup.messages // 10)
    with fresh_database(setup) as database:
        database.query("CREATE TABLE bare (id text PRIMARY KEY, args jsonb NOT NULL)")
        took_s = {"single sends/s": 0.0, "bare INSERTs/s": 0.0}
        for start in range(0, count, 100):
            begun = time.perf_counter()
            for index in range(start, start + 100):
                database.query("INSERT INTO bare VALUES (%s, %s)", f"a{index}", '{"amount": 1}')
            took_s["bare INSERTs/s"] += time.perf_counter() - begun
            begun = time.perf_counter()
            for index in range(start, start + 100):
                Account.ref(f"a{index}").deposit.send(1)
            took_s["single sends/s"] += time.perf_counter() - begun
        many = setup.messages / send_backlog(setup.messages, 10_000)
    return {**{label: count / spent_s for label, spent_s in took_s.items()}, "send_many/s": many}


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
    with fresh_database(setup) as database:
        app.control.purge()
        for index in range(count):
            plain_deposit.delay(f"a{index % 10_000}", 1)
        with worker(setup, "--without-entities"):
            database.await_true(f"SELECT count(*) = {count} FROM plain_done")  # noqa: S608 - a number
        [spread_s] = database.query("SELECT extract(epoch FROM max(at) - min(at)) FROM plain_done")
    return count / float(spread_s)
