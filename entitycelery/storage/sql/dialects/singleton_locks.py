"""How a singleton is locked: by a lock of the holder's session, or by its row alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from sqlalchemy.engine import Connection

from entitycelery.address import lock_space
from entitycelery.storage.sql.statement import fetch, run

_FREE = "SELECT n, pg_try_advisory_xact_lock(%(space)s, n) FROM unnest(%(numbers)s::int[]) AS n"
_END = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
    AND pid <> pg_backend_pid() AND application_name = %(name)s
"""


class SingletonLocks(ABC):
    """The locks of one session. Singletons are named by their numbers."""

    are_rows: bool
    """Whether the rows of `singleton` decide, which expire."""

    @abstractmethod
    def begin(self, conn: Connection, worker: str) -> None:
        """Called once, before anything else is: what an earlier session of the worker holds still is freed."""

    @abstractmethod
    def lock(self, conn: Connection, number: int) -> bool:
        """Take it; whether nobody else had it."""

    @abstractmethod
    def unlock(self, conn: Connection, number: int) -> None:
        """Give it back."""

    @abstractmethod
    def free(self, conn: Connection, numbers: Collection[int]) -> set[int]:
        """Those that nobody has, as far as locks tell."""


class SessionSingletonLocks(SingletonLocks):
    """Advisory locks: gone the moment the holder's process is."""

    are_rows = False

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._space = lock_space(cluster, "singleton")
        # A second take by one session would need a second release.
        self._held: set[int] = set()

    def begin(self, conn: Connection, worker: str) -> None:
        run(conn, _END, {"name": f"entitycelery {self._cluster} singleton {worker}"})

    def lock(self, conn: Connection, number: int) -> bool:
        given = {"space": self._space, "number": number}
        if number not in self._held and fetch(conn, "SELECT pg_try_advisory_lock(%(space)s, %(number)s)", given)[0][0]:
            self._held.add(number)
        return number in self._held

    def unlock(self, conn: Connection, number: int) -> None:
        self._held.discard(number)
        run(conn, "SELECT pg_advisory_unlock(%(space)s, %(number)s)", {"space": self._space, "number": number})

    def free(self, conn: Connection, numbers: Collection[int]) -> set[int]:
        # In autocommit what was granted is given back when this statement ends. Whoever tries at that very moment does
        # so again at its next look.
        given = {"space": self._space, "numbers": list(numbers)}
        return {number for number, granted in fetch(conn, _FREE, given) if granted}


class RowSingletonLocks(SingletonLocks):
    """Nothing but the rows."""

    are_rows = True

    def begin(self, conn: Connection, worker: str) -> None:
        return

    def lock(self, conn: Connection, number: int) -> bool:
        return True

    def unlock(self, conn: Connection, number: int) -> None:
        return

    def free(self, conn: Connection, numbers: Collection[int]) -> set[int]:
        return set(numbers)
