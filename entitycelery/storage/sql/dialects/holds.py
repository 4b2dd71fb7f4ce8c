"""How a runner holds its registration and its leases, as far as databases differ."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId


class Holds(ABC):
    """What one lease session holds, on the connection that every method gets."""

    are_rows: bool
    """Whether the rows of `lease` decide, which expire; else locks of the session do."""

    @property
    def process(self) -> str | None:
        """The name of this process, by which others can tell whether it lives, where that is needed."""
        return None

    @abstractmethod
    def begin(self, conn: Connection) -> None:
        """Called once, before anything else is."""

    @abstractmethod
    def hold_runner(self, conn: Connection, instance: str) -> None:
        """Let everybody see that this runner is there, for as long as the session is."""

    @abstractmethod
    def locked(self, conn: Connection, runners: Sequence[tuple[str, str | None]]) -> dict[str, bool]:
        """Of runners, by instance and process, whether they are there; nothing of those it cannot tell."""

    @abstractmethod
    def lock(self, conn: Connection, shards: Sequence[ShardId]) -> list[ShardId]:
        """Those shards that this session may have; it holds none of them yet."""

    @abstractmethod
    def unlock(self, conn: Connection, shards: Collection[ShardId]) -> None:
        """Give shards back."""

    @abstractmethod
    def unlock_all(self, conn: Connection) -> None:
        """Give back everything, the runner's own hold too."""

    @abstractmethod
    def announce(self, conn: Connection) -> None:
        """Have everybody's `wait` return."""

    @abstractmethod
    def end_sessions(self, conn: Connection, worker: str, *, drains: bool) -> None:
        """End the other lease sessions of a worker; if `drains`, whatever else of it holds something too."""

    def watch(self, instance: str | None) -> None:
        """Have `wait` return when this runner dies, where a database can tell."""
        return

    def wait(self, conn: Connection, timeout_s: float, interrupt: int) -> None:
        """Wait for an announcement, the death of the watched runner, or something to read from `interrupt`."""
        select.select([interrupt], [], [], timeout_s)

    def close(self) -> None:
        """Give back what is beside the connection."""
        return


class RowHolds(Holds):
    """Leases are rows that expire; whether a runner is there shows in its row alone.

    Nobody is told anything, so `wait` is short: everybody looks four times a second.
    """

    are_rows = True
    _LOOK_EVERY_S = 0.25

    def begin(self, conn: Connection) -> None:
        return

    def hold_runner(self, conn: Connection, instance: str) -> None:
        return

    def locked(self, conn: Connection, runners: Sequence[tuple[str, str | None]]) -> dict[str, bool]:
        return {}

    def lock(self, conn: Connection, shards: Sequence[ShardId]) -> list[ShardId]:
        return list(shards)

    def unlock(self, conn: Connection, shards: Collection[ShardId]) -> None:
        return

    def unlock_all(self, conn: Connection) -> None:
        return

    def announce(self, conn: Connection) -> None:
        return

    def end_sessions(self, conn: Connection, worker: str, *, drains: bool) -> None:
        return

    def wait(self, conn: Connection, timeout_s: float, interrupt: int) -> None:
        super().wait(conn, min(timeout_s, self._LOOK_EVERY_S), interrupt)
