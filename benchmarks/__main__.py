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
from pathlib import Path
from typing import Any

import celery
import psycopg2
import sqlalchemy

from benchmarks import bench, delayed, flat, movement, profile, replies, schedules, takeover, workflows


def main() -> None:
    arguments = _arguments()
    setup = bench.Setup(
        server_url=arguments.server,
        broker=arguments.broker,
        backend=arguments.backend,
        processes=arguments.processes,
        messages=arguments.messages // 10 if arguments.quick else arguments.messages,
        picture=arguments.picture,
        dbos=arguments.dbos,
    )
    # The app under measurement reads its settings when it is imported.
    os.environ.update(setup.environment())
    figures: dict[str, Any] = {}
    for name in arguments.only or [case for case in _CASES if case not in _LONG]:
        for label, value in _CASES[name](setup).items():
            figures[label] = round(value, 2)
            print(f"{label:<44} {value:>12,.2f}", file=sys.stderr, flush=True)
    report = {
        "machine": _machine(setup),
        "settings": {**vars(arguments), "picture": None, "dbos": None},
        "figures": figures,
    }
    print(json.dumps(report, indent=2) if arguments.json else _table(report))


_CASES = {
    "handled": lambda setup: {
        f"handled/s, {accounts:,} entities": bench.handled_per_s(setup, accounts) for accounts in (1, 100, 10_000)
    },
    "processor": lambda setup: bench.processor_us(setup, 10_000),
    "steady": lambda setup: {"steady/s, 10,000 entities": bench.steady_per_s(setup, 10_000)},
    "sends": bench.sends_per_s,
    "ask": bench.idle_ask_ms,
    "profile": lambda setup: profile.profile(setup, setup.picture),
    "flat": lambda setup: flat.flat(setup, setup.messages * 25),
    "held": lambda setup: flat.flat(setup, setup.messages * 25, held=True),
    # 70 batches a second, as `held` has, and 100 delayed messages or retries.
    "hour": lambda setup: flat.flat(setup, setup.messages * 25, held=True, hour=flat.Hour(250_000, 360_000)),
    "replies": lambda setup: replies.replies(setup, setup.messages * 250),
    "delayed": delayed.delayed,
    "schedules": schedules.schedules,
    "takeover": takeover.takeover,
    "workflows": lambda setup: workflows.workflows(setup, setup.dbos),
    "movement": lambda _setup: movement.movement(),
    "plain": lambda setup: {"plain Celery, one UPDATE a task/s": bench.plain_per_s(setup)},
}


# They take long, or need py-spy: only where they are asked for.
_LONG = ("profile", "flat", "held", "hour", "replies", "delayed", "takeover", "workflows", "movement")
# What decides most of the figures.
_SERVER_SETTINGS = ("server_version", "fsync", "synchronous_commit", "autovacuum", "shared_buffers")


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
    parser.add_argument("--picture", type=Path, help="where `profile` draws its figures, as SVG")
    parser.add_argument("--dbos", type=Path, help="a Python that has DBOS, for `workflows` to compare with")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("only", nargs="*", help=f"some of: {', '.join(_CASES)}")
    return parser.parse_args()


def _machine(setup: bench.Setup) -> dict[str, Any]:
    with psycopg2.connect(f"{setup.server_url.rstrip('/')}/postgres") as conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT name, current_setting(name) FROM unnest(%s) WITH ORDINALITY AS s(name, o) ORDER BY o",
            (list(_SERVER_SETTINGS),),
        )
        server = dict(cursor.fetchall())
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "celery": celery.__version__,
        "sqlalchemy": sqlalchemy.__version__,
        "postgresql": server.pop("server_version"),
        **server,
    }


def _table(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    rows = [f"| {label} | {value:,} |" for label, value in report["figures"].items()]
    return "\n".join([machine, "", "| figure | value |", "|---|---:|", *rows])


if __name__ == "__main__":
    main()
