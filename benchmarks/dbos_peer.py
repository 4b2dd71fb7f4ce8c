"""The same workflows on DBOS, for `python -m benchmarks workflows --dbos PYTHON`: run by an interpreter that has it.

    python -m benchmarks.dbos_peer DATABASE_URL COUNT ASKS

Prints the figures as JSON. Starters and workers are threads of one process, as DBOS has them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import psycopg
from dbos import DBOS, DBOSConfig

_STEPS = (0, 1, 3, 9)


@DBOS.step()
def identity(number: int) -> int:
    return number


@DBOS.workflow()
def steps(number: int) -> int:
    for step in range(number):
        identity(step)
    return number


def main() -> None:
    url, count, asks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config: DBOSConfig = {"name": "bench", "system_database_url": url, "log_level": "ERROR"}
    DBOS(config=config)
    DBOS.launch()
    database = psycopg.connect(url, autocommit=True)
    figures: dict[str, float] = {}
    for number in _STEPS:
        per_s(database, number, count // 10)
        figures[f"DBOS, workflows/s, {number} steps"] = per_s(database, number, max(count // (number + 1), 50))
    took_ms = []
    for _ in range(asks):
        begun_s = time.perf_counter()
        DBOS.start_workflow(steps, 1).get_result()
        took_ms.append((time.perf_counter() - begun_s) * 1000)
    took_ms.sort()
    figures["DBOS, one step, p50 ms"] = statistics.median(took_ms)
    figures["DBOS, one step, p99 ms"] = took_ms[int(len(took_ms) * 0.99)]
    print(json.dumps(figures))
    DBOS.destroy()


def per_s(database: Any, number: int, count: int) -> float:
    """Workflows per second, from the first start until the last has ended, by the database."""
    begun_ms = time.time() * 1000
    handles = [DBOS.start_workflow(steps, number) for _ in range(count)]
    for handle in handles:
        handle.get_result()
    with database.cursor() as cursor:
        cursor.execute("SELECT max(updated_at) FROM dbos.workflow_status")
        [(ended_ms,)] = cursor.fetchall()
    return count / (float(ended_ms) - begun_ms) * 1000


if __name__ == "__main__":
    main()
