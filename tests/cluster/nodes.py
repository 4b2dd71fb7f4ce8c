"""One worker of a cluster: its processes, its wires to the servers, what its log says of leases."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from datetime import datetime
from typing import Literal, NamedTuple

from tests.celery.workers import Worker, is_alive
from tests.cluster.wires import Wire

Part = Literal["all", "parent", "runner", "child", "loop"]
PARTS: tuple[Part, ...] = ("parent", "runner", "child", "all")
_LEASE_LINE = re.compile(r"^\[(\S+ \S+): \w+/runner\] lease (taken|released|lost): default\.(\d+)", re.MULTILINE)


class LeaseLine(NamedTuple):
    """What a runner says of one lease in its log; by the wall clock."""

    at_s: float
    node: str
    what: str
    shard: int


class Node:
    """A worker, and whatever of it can be hit."""

    def __init__(self, worker: Worker, database: Wire | None, broker: Wire | None) -> None:
        self.worker = worker
        self._database = database
        self._broker = broker

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def address(self) -> str:
        return self.worker.node

    @property
    def is_running(self) -> bool:
        return is_alive(self.worker.pid)

    @property
    def database(self) -> Wire:
        assert self._database is not None, "this worker was started without wires"
        return self._database

    @property
    def broker(self) -> Wire:
        assert self._broker is not None, "this worker was started without wires"
        return self._broker

    def pids(self, part: Part) -> list[int]:
        """The processes of a part; of the pool only one."""
        found = {
            "parent": lambda: [self.worker.pid],
            "runner": self.worker.runner_pids,
            "child": lambda: self.worker.pool_pids()[:1],
            "loop": self.worker.loop_pids,
            "all": lambda: [self.worker.pid, *self.worker.runner_pids(), *self.worker.pool_pids()],
        }[part]()
        assert found, f"{self.name} has no {part}"
        return found

    def send_signal(self, part: Part, number: signal.Signals) -> list[int]:
        """Signal the processes of a part, the parent first; which they were."""
        pids = self.pids(part)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def lease_lines(self) -> list[LeaseLine]:
        """Every lease that it has taken, released and lost."""
        return [
            LeaseLine(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), self.name, what, int(shard))
            for at, what, shard in _LEASE_LINE.findall(self.worker.log())
        ]

    def close(self) -> None:
        for wire in (self._database, self._broker):
            if wire is not None:
                wire.close()
