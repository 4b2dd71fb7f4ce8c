"""A check in a thread of its own, so that whoever asks never waits for a broker or an API server."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from entitycelery.health.verdict import Health, everybody
from entitycelery.placement import Runner


class Aside:
    """Answers at once, by the look that the question before began; until that is over, everybody lives.

    What a look found counts once, and only for runners that have not been seen since it began.
    """

    def __init__(self, health: Health) -> None:
        self.health = health
        self._look: _Look | None = None

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        look = self._look
        if look is not None and look.is_alive():
            return everybody(runners)
        self._look = None
        if runners:
            self._look = _Look(self.health, runners)
            self._look.start()
        return everybody(runners) if look is None else look.healthy(runners)


class _Look(threading.Thread):
    """One look at some runners."""

    def __init__(self, health: Health, runners: Sequence[Runner]) -> None:
        # A look that hangs must not keep the process from ending.
        super().__init__(name="entitycelery.health", daemon=True)
        self._health = health
        self._runners = tuple(runners)
        self._dead: frozenset[Runner] = frozenset()

    def run(self) -> None:
        found = self._health.healthy(self._runners)
        self._dead = frozenset(runner for runner in self._runners if runner.instance not in found)

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        dead = {(runner.instance, runner.seen_at) for runner in self._dead}
        return {runner.instance for runner in runners if (runner.instance, runner.seen_at) not in dead}
