"""One runner's session for its singletons: its locks on them, and what it writes about them.

Owns one connection, apart from that of the leases: what is held here must be confirmed more often than anything else
may take. When it fails everything is lost with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import msgspec
from sqlalchemy.engine import Connection

from entitycelery.singleton import LoopSpec, Seat, Timing
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.dialects.deadline import answers_within
from entitycelery.storage.sql.dialects.singleton_locks import SingletonLocks
from entitycelery.storage.sql.singleton import Singletons
from entitycelery.storage.sql.statement import store_errors


class SqlSingletonSession:
    """The SingletonSession of the SQL store: see the port for what each method promises."""

    def __init__(
        self,
        conn: Connection,
        dialect: Dialect,
        locks: SingletonLocks,
        singletons: Singletons,
        *,
        worker: str,
        address: str,
        timing: Timing,
    ) -> None:
        self._conn = conn
        self._dialect = dialect
        self._locks = locks
        self._singletons = singletons
        self._worker = worker
        self._address = address
        self._timing = timing

    def begin(self, specs: Collection[LoopSpec]) -> None:
        with self._use("beginning with singletons") as conn:
            self._locks.begin(conn, self._worker)
            self._singletons.declare(conn, specs)

    def look(self, names: Collection[str], held: Mapping[str, int]) -> dict[str, Seat]:
        with self._use("confirming singletons") as conn:
            if held and self._locks.are_rows:
                self._singletons.confirm(conn, self._worker, held, self._timing.held_for_s)
            seats = {seat.name: seat for seat in self._singletons.look(conn, names)}
            if self._locks.are_rows:
                return seats
            unheld = {name: seat.number for name, seat in seats.items() if name not in held}
            free = self._locks.free(conn, unheld.values()) if unheld else set()
            return {name: msgspec.structs.replace(seat, is_free=seat.number in free) for name, seat in seats.items()}

    def take(self, name: str) -> tuple[Seat, int] | None:
        with self._use("taking a singleton") as conn:
            # First the lock, then the row: whoever held it may have written to it until it was free.
            [seat] = self._singletons.look(conn, [name])
            if not self._locks.lock(conn, seat.number):
                return None
            [seat] = self._singletons.look(conn, [name])
            epoch = self._singletons.take(
                conn,
                seat,
                if_unheld=self._locks.are_rows,
                worker=self._worker,
                address=self._address,
                held_for_s=self._timing.held_for_s if self._locks.are_rows else None,
                successor_waits_s=self._timing.successor_waits_s,
            )
            if epoch is None:
                self._locks.unlock(conn, seat.number)
                return None
            return seat, epoch

    def run(self, name: str, epoch: int, *, pid: int, again: bool) -> int | None:
        with self._use("starting a singleton") as conn:
            return self._singletons.begin(conn, pid, again=again, name=name, epoch=epoch, worker=self._worker)

    def end(self, name: str, epoch: int, failure: str | None) -> None:
        with self._use("writing down the end of a singleton") as conn:
            self._singletons.end(conn, failure, name=name, epoch=epoch, worker=self._worker)

    def give(self, seat: Seat, epoch: int) -> None:
        with self._use("handing a singleton over") as conn:
            self._singletons.give(conn, name=seat.name, epoch=epoch, worker=self._worker)
            self._locks.unlock(conn, seat.number)

    def ask(self, seat: Seat) -> None:
        with self._use("asking for a singleton") as conn:
            self._singletons.ask(conn, seat.name, seat.epoch, self._worker)

    @contextmanager
    def _use(self, doing: str) -> Iterator[Connection]:
        with store_errors(doing), self._dialect.guard, answers_within(self._timing.answer_within_s):
            yield self._conn
