"""What must hold all the time: looked at while anything waits, and once more when all is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psycopg2

from entitycelery.address import lock_space
from tests.cluster.nodes import LeaseLine, Node

DRAINS = "drains.jsonl"
"""Where the workers write their drains down, in their folder."""
_EVERY_S = 0.05
# A lease is taken before its log line is written, and a drain written down before it looks at anything.
_SAME_MOMENT_S = 0.03
_HOLDERS = """
    SELECT objid::bigint, split_part(application_name, ' ', 4) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND mode = 'ExclusiveLock' AND classid::bigint = %s
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Drain(NamedTuple):
    """One drain; by the wall clock."""

    at_s: float
    node: str
    shards: Sequence[int]


def holders_by_locks(url: str, cluster: str) -> dict[int, list[str]]:
    """Shard -> the workers whose sessions hold its lock; more than one can never be."""
    found: dict[int, list[str]] = {}
    connection = psycopg2.connect(url, connect_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.execute(_HOLDERS, (lock_space(cluster, "lease default") & 0xFFFFFFFF,))
            for shard, worker in cursor.fetchall():
                found.setdefault(shard, []).append(worker)
    finally:
        connection.close()
    return found


class Sampler:
    """Looks at the locks again and again, in a thread, until it is stopped."""

    def __init__(self, url: str, cluster: str) -> None:
        self._url = url
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looks = 0
        self.found: list[str] = []
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                holders = holders_by_locks(self._url, self._cluster)
            except psycopg2.Error:
                # The server is being restarted: nobody holds anything.
                continue
            self.looks += 1
            self.found += [
                f"{time.time():.3f}: shard {shard} is held by {sorted(workers)}"
                for shard, workers in holders.items()
                if len(workers) > 1
            ]


def drains_in(file: Path) -> list[Drain]:
    """All drains of all workers, in the order in which they began."""
    lines = file.read_text().splitlines() if file.exists() else []
    read = [json.loads(line) for line in lines]
    return sorted(
        Drain(line["at_s"], line["node"], [int(shard.rpartition(".")[2]) for shard in line["shards"]]) for line in read
    )


def late_drains(leases: Iterable[LeaseLine], drains: Sequence[Drain]) -> list[str]:
    """Former holders that ran more than one drain of a shard after its next holder had taken the lease."""
    found = []
    taken: dict[int, list[LeaseLine]] = {}
    for line in sorted(leases):
        if line.what == "taken":
            taken.setdefault(line.shard, []).append(line)
    for shard, takings in taken.items():
        of_shard = [drain for drain in drains if shard in drain.shards]
        for now, following in pairwise([*takings, LeaseLine(float("inf"), "", "taken", shard)]):
            late: dict[str, list[str]] = {}
            for drain in of_shard:
                if drain.node != now.node and now.at_s + _SAME_MOMENT_S < drain.at_s < following.at_s - _SAME_MOMENT_S:
                    late.setdefault(drain.node, []).append(f"{drain.at_s - now.at_s:.3f}")
            found += [
                f"{node} drained shard {shard} {', '.join(after_s)} s after {now.node} had taken it at {now.at_s:.3f}"
                for node, after_s in late.items()
                if len(after_s) > 1
            ]
    return found


def lease_lines(nodes: Iterable[Node]) -> list[LeaseLine]:
    """What all logs say of leases, in order."""
    return sorted(line for node in nodes for line in node.lease_lines())
