"""Runners for the tests of leases: each a lease session on a store of its own, as in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from entitycelery.address import ShardId
from entitycelery.placement import NewRunner, Placement, Runner
from entitycelery.storage.sql.lease_session import SqlLeaseSession
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import Program, opened
from tests.waiting import eventually

DEADLINE_S = 5.0
LEASE_S = 30.0

# name -> what is done in a process of its own: a runner that holds two shards until it is ended.
HOST = """
import sys
from entitycelery.address import ShardId
from tests.storage.leases import Host
from tests.storage.support import opened
with opened(sys.argv[1]) as store, Host.opened(store, "other") as host:
    host.session.take([ShardId("default", 0), ShardId("default", 1)])
    print("READY", host.me.instance, flush=True)
    sys.stdin.readline()
"""


def new_runner(name: str, **other: Any) -> NewRunner:
    """A worker's runner; `other` are fields of its own."""
    own: dict[str, Any] = {
        "worker": os.urandom(4).hex(),
        "address": f"{name}@host",
        "host": "host",
        "pid": 100,
        "groups": ("default", "gpu"),
        "weight": 1.0,
        "pool": "prefork",
        "library_version": "0.1.0",
    }
    return NewRunner(**{**own, **other})


class Host:
    """One registered runner."""

    def __init__(self, store: SqlStore, session: SqlLeaseSession, new: NewRunner) -> None:
        self.store = store
        self.session = session
        self.new = new
        self.me = session.register(new)
        self.interrupt, self._news = os.pipe()

    @classmethod
    @contextmanager
    def opened(cls, store: SqlStore, name: str, *, lease_s: float = LEASE_S, **other: Any) -> Iterator[Host]:
        new = new_runner(name, **other)
        with store.lease_session(new.worker, deadline_s=DEADLINE_S, lease_s=lease_s) as session:
            host = cls(store, session, new)
            try:
                yield host
            finally:
                host.close()

    @property
    def instance(self) -> str:
        return self.me.instance

    def take(self, *numbers: int, group: str = "default") -> dict[int, int]:
        """Take leases; numbers of those that were had, with their epochs."""
        taken = self.session.take([ShardId(group, number) for number in numbers])
        return {shard.number: epoch for shard, epoch in taken.items()}

    def give(self, *numbers: int) -> None:
        self.session.give([ShardId("default", number) for number in numbers])

    def confirm(self, *, starved: bool = False, leaving: bool = False) -> set[int] | None:
        """Renew; the numbers of the shards that are held, or None after an eviction."""
        is_there = self.session.confirm(starved=starved, leaving=leaving)
        return {shard.number for shard in self.session.held} if is_there else None

    def look(self) -> Placement:
        return self.session.look()

    def sees(self, instance: str) -> Runner:
        found = self.look().runner(instance)
        assert found is not None
        return found

    def holders(self) -> dict[int, str | None]:
        return {lease.shard.number: lease.holder for lease in self.look().leases}

    def waits_s(self, timeout_s: float = 5.0) -> float:
        """How long a wait for others takes."""
        began_s = time.monotonic()
        self.session.wait(timeout_s, self.interrupt)
        return time.monotonic() - began_s

    def settle(self) -> None:
        """Hear what others told of until now, so that the next wait is for something new."""
        eventually(lambda: self.waits_s(0.2) >= 0.2)

    def interrupt_it(self) -> None:
        os.write(self._news, b"!")

    def close(self) -> None:
        os.close(self.interrupt)
        os.close(self._news)


class Hosts:
    """Makes runners of one cluster, each with a store of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stack = ExitStack()

    def __call__(self, name: str, *, lease_s: float = LEASE_S, cluster: str = "conformance", **other: Any) -> Host:
        store = self.stack.enter_context(opened(self.url, cluster=cluster))
        return self.stack.enter_context(Host.opened(store, name, lease_s=lease_s, **other))

    def in_process(self) -> tuple[Program, str]:
        """A runner in a process of its own, which holds shards 0 and 1; its instance."""
        program = Program(HOST, self.url)
        self.stack.callback(program.kill)
        ready, instance = program.line().split()
        assert ready == "READY"
        return program, instance


MakeHost = Callable[..., Host]
