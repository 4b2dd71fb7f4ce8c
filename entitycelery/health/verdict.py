"""Whether a runner that has fallen silent is alive: who may say so, and what follows from it.

A verdict only saves time: without one a runner is evicted when its lease has run out. So doubt is for life.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import msgspec

from entitycelery.placement import Placement, Runner
from entitycelery.settings import Settings


class Place(msgspec.Struct, frozen=True):
    """From where a runner looks at the others."""

    settings: Settings
    app: Any
    """A Celery app with the broker of the worker; what else it needs says `ping.CONTROL_SETTINGS`."""
    address: str
    """The node name of our own worker."""


class Health(Protocol):
    """One way to find out who lives."""

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        """The instances of those that are believed alive.

        Ends in bounded time and raises nothing: whoever cannot find out says that all are alive.
        """


def everybody(runners: Sequence[Runner]) -> set[str]:
    """All of them."""
    return {runner.instance for runner in runners}


class Condemned:
    """Whom a health check takes for dead among the runners that have not been seen for so long."""

    def __init__(self, health: Health, suspect_after_s: float) -> None:
        self._health = health
        self._suspect_after_s = suspect_after_s

    def __call__(self, placement: Placement, me: Runner) -> list[Runner]:
        suspects = [
            runner
            for runner in placement.runners
            if runner.instance != me.instance and runner.locked is not True and runner.unseen_s > self._suspect_after_s
        ]
        return unhealthy(placement.runners, suspects, self._health.healthy(suspects))


def unhealthy(all_runners: Sequence[Runner], suspects: Sequence[Runner], healthy: Collection[str]) -> list[Runner]:
    """Those suspects that are to be evicted now.

    Never one whose session holds its lock, and never all runners that there are: then the one that was seen last stays.
    """
    condemned = [runner for runner in suspects if runner.instance not in healthy and runner.locked is not True]
    if everybody(all_runners) - everybody(condemned):
        return condemned
    spared = max(condemned, key=lambda runner: (runner.seen_at, runner.instance), default=None)
    return [runner for runner in condemned if runner is not spared]
