"""The part of the store that keeps singletons. Every method may raise StoreUnavailable."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from entitycelery.singleton import StoredSingleton, Timing
from entitycelery.storage.sessions import SingletonSession


class Roster(Protocol):
    """The singletons of one cluster: who runs each, how it is, and what operators want of it."""

    def session(self, worker: str, address: str, timing: Timing) -> AbstractContextManager[SingletonSession]:
        """The session of a worker's runner for its singletons; what is held is lost with it."""

    def all(self) -> list[StoredSingleton]:
        """All singletons that there have been, by name."""

    def beat(self, name: str, fence: int) -> bool:
        """Write a heartbeat; False where the process of another fence runs it by now."""

    def restart(self, name: str) -> bool:
        """Have its holder start it again; False where there is none of the name."""

    def move(self, name: str, *, wanted: str | None, avoided: str | None) -> bool:
        """Want it at a worker, or away from one, for as long as that lives; False where there is none of the name."""
