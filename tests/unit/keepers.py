"""Keepers that run in threads, on one real store; their workers only say what a test has them say."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.settings import Settings
from entitycelery.sharding.keeper import Condemn, Heard, Keeper, nobody
from entitycelery.storage.sql.store import SqlStore
from tests.storage.leases import Host, new_runner
from tests.storage.support import opened

SETTINGS = Settings(shards_per_group=8, refresh_interval_s=0.1, lease_timeout_s=1.0)
SHARDS = frozenset(SETTINGS.served_shards)
IDLE = Heard(at_s=0.0, done=0, busy=frozenset(), starved=False, leaving=False)


class Worker:
    """Carries out every list at once and answers, unless told otherwise."""

    def __init__(self) -> None:
        self.shards: frozenset[ShardId] = frozenset()
        self.longest_s = 0.0
        self.number = 0
        self.answers = True
        self.carries_out = True
        self._said = IDLE
        self._at_s = _now_s()
        self.interrupt, self._news = os.pipe()
        os.set_blocking(self.interrupt, False)

    @property
    def heard(self) -> Heard:
        if self.answers:
            self._at_s = _now_s()
        done = self.number if self.carries_out else 0
        return msgspec.structs.replace(self._said, at_s=self._at_s, done=done)

    def say(self, **what: Any) -> None:
        self._said = msgspec.structs.replace(self._said, **what)
        os.write(self._news, b"!")

    def settle(self) -> None:
        try:
            os.read(self.interrupt, 1024)
        except BlockingIOError:
            return

    def consume(self, shards: Collection[ShardId], for_s: float) -> int:
        self.shards = frozenset(shards)
        self.longest_s = max(self.longest_s, for_s)
        self.number += 1
        return self.number


class Runs:
    """A keeper that runs in a thread, as in its runner process."""

    def __init__(self, store: SqlStore, name: str, condemned: Condemn = nobody) -> None:
        self.worker = Worker()
        self.new = new_runner(name, groups=("default",))
        self.keeper = Keeper(store, SETTINGS, self.worker, self.new, condemned)
        self._thread = threading.Thread(target=self.keeper.run, daemon=True)
        self._thread.start()

    def consumes(self, count: int) -> bool:
        return len(self.worker.shards) == count

    def leave(self) -> None:
        self.worker.answers = True
        self.worker.say(leaving=True)
        self._thread.join(10)
        assert not self._thread.is_alive()


class Cluster:
    """Keepers on one store, each with a store of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.stack = ExitStack()
        self.store = self.open()

    def open(self) -> SqlStore:
        return self.stack.enter_context(opened(self._url, shards=SETTINGS.shards_per_group, lease_s=1.0))

    def __call__(self, name: str, condemned: Condemn = nobody) -> Runs:
        runs = Runs(self.open(), name, condemned)
        self.stack.callback(runs.leave)
        return runs

    @contextmanager
    def host(self, name: str) -> Iterator[Host]:
        """A runner that does only what the test has it do."""
        with Host.opened(self.open(), name, lease_s=1.0, groups=("default",)) as host:
            yield host

    def instance_of(self, runs: Runs) -> str:
        [found] = [runner for runner in self.store.placement().runners if runner.worker == runs.new.worker]
        return found.instance

    def holders(self) -> dict[ShardId, str | None]:
        return {lease.shard: lease.holder for lease in self.store.placement().leases}


class Broken:
    """A store that does not answer."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.is_broken = False
        self.asked = 0

    @contextmanager
    def lease_session(self, *args: Any, **options: Any) -> Iterator[Any]:
        self.asked += 1
        if self.is_broken:
            raise StoreUnavailable("as the test wants it")
        with self._store.lease_session(*args, **options) as session:
            yield _Breaking(self, session)


class _Breaking:
    def __init__(self, store: Broken, session: Any) -> None:
        self._store = store
        self._session = session

    def __getattr__(self, name: str) -> Any:
        if self._store.is_broken:
            raise StoreUnavailable("as the test wants it")
        return getattr(self._session, name)


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
