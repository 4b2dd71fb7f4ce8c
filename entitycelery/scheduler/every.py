"""Every: an interval of real time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.tick import Tick, as_utc, instant_of, utc_tick

SHORTEST_S = 1
LONGEST_S = 100 * 365.25 * 86_400


class Every(msgspec.Struct, frozen=True, tag_field="kind", tag="every"):
    """Every `every_s` seconds, from `anchor` on, which is the first tick. Exact to the microsecond for ever."""

    every_s: float
    anchor: datetime

    def __post_init__(self) -> None:
        # Equal recurrences are written alike.
        msgspec.structs.force_setattr(self, "every_s", float(self.every_s))
        if self.anchor.tzinfo is not None:
            msgspec.structs.force_setattr(self, "anchor", self.anchor.astimezone(UTC))

    @property
    def interval(self) -> timedelta:
        """The interval, in whole microseconds: what is added is what is meant."""
        return timedelta(seconds=self.every_s)

    def first(self, after: datetime) -> Tick | None:
        """The first tick after an instant."""
        return self._tick(max(0, self._count(after) + 1))

    def following(self, tick: Tick) -> Tick | None:
        """The tick after `tick`, back on the grid if that one was not."""
        return self.first(instant_of(tick))

    def latest(self, not_after: datetime) -> Tick | None:
        """The last tick that is due at an instant or before."""
        count = self._count(not_after)
        return self._tick(count) if count >= 0 else None

    def between(self, start: datetime, end: datetime) -> int:
        """How many ticks are due from `start` on and before `end`."""
        start, end = max(as_utc(start), as_utc(self.anchor)), as_utc(end)
        from_anchor = as_utc(self.anchor)
        return max(0, -((from_anchor - end) // self.interval) + (from_anchor - start) // self.interval)

    def describe(self) -> str:
        """The recurrence in words."""
        return f"every {self.every_s:g} s from {as_utc(self.anchor).isoformat()}"

    def check(self) -> None:
        """Look whether it can ever fire.

        Raises:
            ConfigurationError: The interval is no interval, or its anchor no instant.
        """
        if not SHORTEST_S <= self.every_s <= LONGEST_S:
            raise ConfigurationError(f"every_s must be from {SHORTEST_S} to {LONGEST_S:.0f}, got {self.every_s!r}")
        as_utc(self.anchor)

    def _count(self, instant: datetime) -> int:
        return (as_utc(instant) - as_utc(self.anchor)) // self.interval

    def _tick(self, count: int) -> Tick | None:
        try:
            return utc_tick(as_utc(self.anchor) + count * self.interval)
        except OverflowError:
            return None  # after the year 9999
