"""The singletons of the SQL store: see the port for what each method promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from entitycelery.singleton import StoredSingleton, Timing
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.engines import Engines
from entitycelery.storage.sql.singleton import Singletons
from entitycelery.storage.sql.singleton_session import SqlSingletonSession


class SqlRoster:
    """The Roster of one cluster. A session is a connection of its own, made within `timeout_s`."""

    def __init__(self, dialect: Dialect, engines: Engines, singletons: Singletons, timeout_s: float) -> None:
        self._dialect = dialect
        self._engines = engines
        self._singletons = singletons
        self._timeout_s = timeout_s

    @contextmanager
    def session(self, worker: str, address: str, timing: Timing) -> Iterator[SqlSingletonSession]:
        connecting = self._engines.lease(
            worker, timing.answer_within_s, role="singleton", connects_within_s=self._timeout_s
        )
        with connecting as conn:
            yield SqlSingletonSession(
                *(conn, self._dialect, self._dialect.singleton_locks(), self._singletons),
                worker=worker,
                address=address,
                timing=timing,
            )

    def all(self) -> list[StoredSingleton]:
        with self._engines.use("reading singletons") as conn:
            return self._singletons.read(conn)

    def beat(self, name: str, fence: int) -> bool:
        with self._engines.use("writing a heartbeat") as conn:
            return self._singletons.beat(conn, name, fence)

    def restart(self, name: str) -> bool:
        with self._engines.use("restarting a singleton") as conn:
            return self._singletons.restart(conn, name)

    def move(self, name: str, *, wanted: str | None, avoided: str | None) -> bool:
        with self._engines.use("moving a singleton") as conn:
            return self._singletons.move(conn, name, wanted, avoided)
