"""One runner's session: its registration, its leases, and its ear for the others.

Owns one connection that is never in a pool and never crosses a fork. When it fails everything is lost with it, which
is the point: a session that cannot say that it holds its leases does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.placement import NewRunner, Placement, Runner
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.dialects.deadline import answers_within
from entitycelery.storage.sql.dialects.holds import Holds
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.lease import Leases
from entitycelery.storage.sql.runner import Runners
from entitycelery.storage.sql.statement import store_errors


class SqlLeaseSession:
    """The LeaseSession of the SQL store: see the port for what each method promises."""

    def __init__(
        self,
        conn: Connection,
        dialect: Dialect,
        holds: Holds,
        runners: Runners,
        leases: Leases,
        hashing: Hashing,
        *,
        deadline_s: float,
        lease_s: float,
    ) -> None:
        self._conn = conn
        self._dialect = dialect
        self._holds = holds
        self._runners = runners
        self._leases = leases
        self._hashing = hashing
        self._deadline_s = deadline_s
        self._lease_s = lease_s
        self._instance = ""
        self._held: set[ShardId] = set()

    def register(self, new: NewRunner) -> Runner:
        with self._use("registering a runner") as conn:
            self._holds.begin(conn)
            # What an earlier session of this worker may hold still, if its end has not reached the server.
            self._holds.end_sessions(conn, new.worker, drains=False)
            self._hashing.check(conn)
            self._instance = self._runners.register(conn, new, self._holds.process, self._holds.hold_runner)
            try:
                # Once more: a reshard that began before our row was there did not see it, and is over now.
                self._hashing.check(conn)
            except ConfigurationError:
                self._runners.withdraw(conn, self._instance)
                raise
            self._holds.announce(conn)
            found = {runner.instance: runner for runner in self._runners.read(conn, self._holds.locked)}
        if self._instance not in found:
            raise StoreUnavailable("this runner was removed as soon as it had registered")
        return found[self._instance]

    @property
    def held(self) -> frozenset[ShardId]:
        return frozenset(self._held)

    def confirm(self, *, starved: bool, leaving: bool, refused: Collection[ShardId] = ()) -> bool:
        with self._use("renewing leases") as conn:
            if not self._runners.confirm(conn, self._instance, starved, leaving, refused):
                self._held.clear()
                return False
            if self._holds.are_rows:
                self._held = set(self._leases.renew(conn, self._instance, self._lease_s))
            return True

    def look(self) -> Placement:
        with self._use("looking at runners and leases") as conn:
            return Placement(self._runners.read(conn, self._holds.locked), self._leases.read(conn))

    def take(self, shards: Sequence[ShardId]) -> dict[ShardId, int]:
        wanted = [shard for shard in shards if shard not in self._held]
        if not wanted:
            return {}
        with self._use("taking leases") as conn:
            granted = self._holds.lock(conn, wanted)
            if self._holds.are_rows:
                taken = self._leases.take(conn, self._instance, granted, self._lease_s)
            else:
                taken = self._leases.record(conn, self._instance, granted)
            self._held.update(taken)
            return taken

    def give(self, shards: Sequence[ShardId]) -> None:
        given = [shard for shard in shards if shard in self._held]
        if not given:
            return
        with self._use("giving leases up") as conn:
            self._leases.give(conn, self._instance, given)
            self._holds.unlock(conn, given)
            self._held.difference_update(given)
            self._holds.announce(conn)

    def remove(self, runner: Runner) -> bool:
        with self._use("removing a runner") as conn:
            if not self._runners.remove(conn, runner):
                return False
            if runner.locked is not False and not self._runners.is_registered(conn, runner.worker):
                # It is there and does nothing: what it holds would stay held.
                self._holds.end_sessions(conn, runner.worker, drains=True)
            self._holds.announce(conn)
            return True

    def watch(self, runner: Runner | None) -> None:
        self._holds.watch(None if runner is None else runner.instance)

    def wait(self, timeout_s: float, interrupt: int) -> None:
        with store_errors("waiting for other runners"), answers_within(self._deadline_s):
            self._holds.wait(self._conn, timeout_s, interrupt)

    def leave(self) -> None:
        if not self._instance:
            return
        with self._use("giving everything up") as conn:
            self._leases.give_all(conn, self._instance)
            self._runners.withdraw(conn, self._instance)
            self._holds.unlock_all(conn)
            self._held.clear()
            self._holds.announce(conn)

    def close(self) -> None:
        """Give back what is beside the connection; what is held goes with the connection or runs out."""
        self._holds.close()

    @contextmanager
    def _use(self, doing: str) -> Iterator[Connection]:
        with store_errors(doing), self._dialect.guard, answers_within(self._deadline_s):
            yield self._conn
