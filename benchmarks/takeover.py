"""How long the shards of a worker wait when it is killed, and when it is told to end.

Two workers share the shards. One goes, and at once a message is sent to an entity of each of its shards: the time
until the last of them is handled, by the database's clock. Then another worker takes its place.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import Database, Setup, fresh_database

ROUNDS = 20
_TIMEOUT_S = 60.0


def takeover(setup: Setup) -> dict[str, float]:
    """Milliseconds from `kill -9` of a worker, and from SIGTERM, until each of its shards is served elsewhere."""
    figures: dict[str, float] = {}
    with fresh_database(setup) as database:
        fleet = _Fleet(setup)
        try:
            for label, go in (("kill -9", _kill), ("SIGTERM", _terminate)):
                waits_ms = sorted(fleet.replaced(database, go) for _ in range(ROUNDS))
                figures[f"{label}, shards served elsewhere, p50 ms"] = statistics.median(waits_ms)
                figures[f"{label}, shards served elsewhere, max of {ROUNDS} ms"] = waits_ms[-1]
        finally:
            fleet.end()
    return figures


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()


class _Fleet:
    """Two workers with half of the shards each."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._number = 0
        self._log = Path(f"bench-takeover-{os.getpid()}.log")
        self._workers = [self._start(), self._start()]

    def _start(self) -> subprocess.Popen[bytes]:
        self._number += 1
        node = ["-n", f"bench{self._number}@localhost", "-c", str(self._setup.processes), "-l", "WARNING"]
        with self._log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", *node],
                env=self._setup.environment(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def replaced(self, database: Database, go: Callable[[subprocess.Popen[bytes]], None]) -> float:
        """End the older worker, start another; milliseconds that the shards of the one that went were not served."""
        from benchmarks.app import Account, entities  # noqa: PLC0415 - reads its settings when it is imported

        oldest = self._workers.pop(0)
        refs = self._refs_of(f"bench{self._number - 1}@localhost")
        [began_s] = database.query("SELECT extract(epoch FROM clock_timestamp())")
        go(oldest)
        sent = entities.send_many([Account.ref(name).deposit.prepare(1) for name in refs])
        for one in sent:
            one.result(timeout_s=_TIMEOUT_S)
        ids = [one.id for one in sent]
        statement = "SELECT extract(epoch FROM max(finished_at)) FROM entity_default.reply WHERE id = ANY(%s)"
        [ended_s] = database.query(statement, ids)
        oldest.wait(_TIMEOUT_S)
        self._workers.append(self._start())
        return float(ended_s - began_s) * 1000

    def _refs_of(self, node: str) -> list[str]:
        """An entity of each shard of a node, once the shards are shared out and nothing moves."""
        from benchmarks.app import Account, entities  # noqa: PLC0415

        shards = entities.settings.shards_per_group
        deadline_s = time.monotonic() + _TIMEOUT_S
        while True:
            placement = entities.placement()
            nodes = {runner.instance: runner.address for runner in placement.runners}
            mine = {lease.shard for lease in placement.leases if nodes.get(str(lease.holder)) == node}
            if len(nodes) == 2 and len(mine) == shards // 2:
                break
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the shards were not shared out:\n{self._log.read_text()}")
            time.sleep(0.05)
        found: dict[object, str] = {}
        for number in range(100 * shards):
            shard = entities.shard_of(Account.ref(f"a{number}"))
            if shard in mine:
                found.setdefault(shard, f"a{number}")
        return list(found.values())

    def end(self) -> None:
        for worker in self._workers:
            _kill(worker)
            worker.wait(_TIMEOUT_S)
        self._log.unlink(missing_ok=True)
