"""`python -m benchmarks`: all figures of docs/performance.md, in one run, as a table or as JSON.

Needs PostgreSQL and a broker; everything runs on this machine. The servers' own settings are printed beside the
figures, since fsync and synchronous_commit decide most of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

import celery
import psycopg2
import sqlalchemy

from benchmarks import bench


def main() -> None:
    arguments = _arguments()
    setup = bench.Setup(
        server_url=arguments.server,
        broker=arguments.broker,
        backend=arguments.backend,
        processes=arguments.processes,
        messages=arguments.messages // 10 if arguments.quick else arguments.messages,
    )
    # The app under measurement reads its settings when it is imported.
    os.environ.update(setup.environment())
    figures: dict[str, Any] = {}
    for name in arguments.only or _CASES:
        for label, value in _CASES[name](setup).items():
            figures[label] = round(value, 2)
            print(f"{label:<44} {value:>12,.2f}", file=sys.stderr, flush=True)
    report = {"machine": _machine(setup), "settings": vars(arguments), "figures": figures}
    print(json.dumps(report, indent=2) if arguments.json else _table(report))


_CASES = {
    "handled": lambda setup: {
        f"handled/s, {accounts:,} entities": bench.handled_per_s(setup, accounts) for accounts in (1, 100, 10_000)
    },
    "processor": lambda setup: bench.processor_us(setup, 10_000),
    "steady": lambda setup: {"steady/s, 10,000 entities": bench.steady_per_s(setup, 10_000)},
    "sends": bench.sends_per_s,
    "ask": bench.idle_ask_ms,
    "plain": lambda setup: {"plain Celery, one UPDATE a task/s": bench.plain_per_s(setup)},
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--server", default="postgresql://postgres@127.0.0.1:5432", help="PostgreSQL, without a database"
    )
    parser.add_argument("--broker", default="amqp://guest@127.0.0.1:5672//")
    parser.add_argument("--backend", default="redis://127.0.0.1:6379/7", help="for Celery's own delay().get()")
    parser.add_argument("--processes", type=int, default=2, help="pool processes of the worker (prefork)")
    parser.add_argument("--messages", type=int, default=40_000, help="per measurement")
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("only", nargs="*", help=f"some of: {', '.join(_CASES)}")
    return parser.parse_args()


def _machine(setup: bench.Setup) -> dict[str, Any]:
    with psycopg2.connect(f"{setup.server_url.rstrip('/')}/postgres") as conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')"
        )
        version, fsync, synchronous_commit = cursor.fetchone() or ("", "", "")
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "celery": celery.__version__,
        "sqlalchemy": sqlalchemy.__version__,
        "postgresql": version,
        "fsync": fsync,
        "synchronous_commit": synchronous_commit,
    }


def _table(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    rows = [f"| {label} | {value:,} |" for label, value in report["figures"].items()]
    return "\n".join([machine, "", "| figure | value |", "|---|---:|", *rows])


if __name__ == "__main__":
    main()
