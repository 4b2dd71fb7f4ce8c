"""Cron: the times of an expression in a time zone."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.cron_expression import cron_expression
from entitycelery.scheduler.fixed_times import FixedTimes
from entitycelery.scheduler.real_intervals import RealIntervals
from entitycelery.scheduler.tick import Tick, as_utc
from entitycelery.scheduler.wall_clock import wall_clock

# Arithmetic with time zones and fifty years must stay inside of what a datetime can hold.
_EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
_LATEST = datetime(9900, 1, 1, tzinfo=UTC)


class Cron(msgspec.Struct, frozen=True, tag_field="kind", tag="cron"):
    """A cron expression of 5 fields, or 6 with the second last, in an IANA time zone.

    A job at fixed times (neither minute nor hour nor second has `*` or a step) fires once per nominal time; any other
    fires at every real interval. With `day_or`, a day of month *or* a day of week is enough where both are given.
    """

    expression: str
    timezone: str = "UTC"
    day_or: bool = True

    def first(self, after: datetime) -> Tick | None:
        """The first tick after an instant."""
        instant = max(as_utc(after), _EARLIEST)
        return self._times().first(instant) if instant < _LATEST else None

    def following(self, tick: Tick) -> Tick | None:
        """The tick after `tick`, by name: a jump of the clock may make several due at one instant."""
        return self._times().following(tick) if tick.at < _LATEST else None

    def latest(self, not_after: datetime) -> Tick | None:
        """The last tick that is due at an instant or before."""
        instant = min(as_utc(not_after), _LATEST)
        return self._times().latest(instant) if instant > _EARLIEST else None

    @property
    def is_fixed(self) -> bool:
        """Whether it fires once per nominal time, and not at every real interval."""
        return cron_expression(self.expression, self.day_or).is_fixed

    def describe(self) -> str:
        """The recurrence in words."""
        both = "" if self.day_or else ", on days that are both"
        return f"cron {self.expression} in {self.timezone}{both}"

    def check(self) -> None:
        """Look whether it can ever fire.

        Raises:
            ConfigurationError: No such zone, no such expression, or one that never comes.
        """
        if self._times().first(datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise ConfigurationError(
                f"cron expression {self.expression!r}: {self.timezone} always skips the times it names; "
                "expected one that exists there"
            )

    def _times(self) -> FixedTimes | RealIntervals:
        return _times(self.expression, self.timezone, self.day_or)


@lru_cache(maxsize=4096)
def _times(expression: str, timezone: str, day_or: bool) -> FixedTimes | RealIntervals:
    parsed, clock = cron_expression(expression, day_or), wall_clock(timezone)
    return FixedTimes(parsed.times, clock) if parsed.is_fixed else RealIntervals(parsed.times, clock)
