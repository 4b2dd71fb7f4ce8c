"""For how long others have been silent, by our own clock, which nobody steps.

Whoever lives writes the database's present moment again and again. How old that is says how long he has been silent
only until the database's clock is stepped: forward, and everybody seems dead; back, and the dead seem to have spoken
just now. Whether it has changed since the last look says so whatever becomes of that clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from entitycelery.placement import Placement


class Said(msgspec.Struct, frozen=True):
    """What somebody said last."""

    at: object
    """When, by the database's clock; compared with what was said before and with nothing else."""
    age_s: float
    """How long ago that was by the database's clock; negative after it was stepped back."""


class Silences:
    """Remembers what everybody said at the last look."""

    def __init__(self) -> None:
        self._looked_s = -math.inf
        self._known: dict[str, tuple[Said, float]] = {}

    def heard(self, said: Mapping[str, Said], looked_s: float) -> dict[str, float]:
        """How long everybody has been silent, as a look found that began at `looked_s` of our clock.

        What is new was said after the look before. At the first look there is only the database's clock to go by.
        """
        self._known = {name: self._since(name, one, looked_s) for name, one in said.items()}
        self._looked_s = looked_s
        return {name: looked_s - since_s for name, (_, since_s) in self._known.items()}

    def _since(self, name: str, said: Said, looked_s: float) -> tuple[Said, float]:
        before = self._known.get(name)
        if before is not None and before[0].at == said.at:
            return before
        return said, max(looked_s - max(0.0, said.age_s), self._looked_s)

    def placement(self, found: Placement, looked_s: float) -> Placement:
        """What a look at the runners found, with `unseen_s` by our clock."""
        said = {runner.instance: Said(runner.seen_at, runner.unseen_s) for runner in found.runners}
        silent_s = self.heard(said, looked_s)
        runners = (msgspec.structs.replace(runner, unseen_s=silent_s[runner.instance]) for runner in found.runners)
        return msgspec.structs.replace(found, runners=tuple(runners))
