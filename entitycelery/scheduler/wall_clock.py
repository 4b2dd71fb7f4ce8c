"""The clock on the wall of a time zone: what it shows, when it is put forward or back, and how far it has come.

Knows nothing of cron. Instants are aware UTC datetimes, readings are naive local ones.
"""

from __future__ import annotations

import difflib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.tick import MICROSECOND

# No two readings of one instant are further apart, so no clock is ever put forward or back by more.
FURTHEST_APART = timedelta(days=2)
# No zone has put its clock forward and back again within less.
_PROBE = timedelta(hours=6)
_SECOND = timedelta(seconds=1)


class WallClock:
    """The wall clock of one zone. Immutable."""

    __slots__ = ("_zone",)

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone

    def local(self, instant: datetime) -> datetime:
        """The instant in the zone, with its offset."""
        return instant.astimezone(self._zone)

    def reading(self, instant: datetime) -> datetime:
        """What the clock shows at an instant."""
        return instant.astimezone(self._zone).replace(tzinfo=None, fold=0)

    def furthest(self, instant: datetime) -> datetime:
        """The furthest the clock has shown up to an instant: ahead of its reading for a while after it was put back.

        Never goes back, so a time of day that is compared with it comes once.
        """
        shown = self.reading(instant)
        start = instant - FURTHEST_APART
        while change := self.first_change(start, instant):
            shown = max(shown, self.reading(change - MICROSECOND))
            start = change
        return shown

    def reached(self, reading: datetime) -> datetime:
        """The first instant at which the clock shows `reading`, or has jumped over it."""
        local = reading.replace(tzinfo=self._zone, fold=0)
        instant = local.astimezone(UTC)
        if self.reading(instant) == reading:
            return instant
        # In a gap the two folds lie on either side of the jump.
        return self.first_change(local.replace(fold=1).astimezone(UTC), instant) or instant

    def first_change(self, start: datetime, end: datetime) -> datetime | None:
        """The first instant after `start`, and not after `end`, from which the offset is another."""
        while start < end:
            probe = min(start + _PROBE, end)
            if self._offset(start) != self._offset(probe):
                return self._change_between(start, probe)
            start = probe
        return None

    def last_change(self, start: datetime, end: datetime) -> datetime | None:
        """The last instant after `start`, and not after `end`, from which the offset is another."""
        while end > start:
            probe = max(end - _PROBE, start)
            if self._offset(probe) != self._offset(end):
                return self._change_between(probe, end)
            end = probe
        return None

    def _offset(self, instant: datetime) -> timedelta | None:
        return instant.astimezone(self._zone).utcoffset()

    def _change_between(self, before: datetime, after: datetime) -> datetime:
        # Clocks are changed at whole seconds.
        before, after = before.replace(microsecond=0), after.replace(microsecond=0)
        offset = self._offset(before)
        while after - before > _SECOND:
            middle = before + (after - before) // _SECOND // 2 * _SECOND
            if self._offset(middle) == offset:
                before = middle
            else:
                after = middle
        return after


@lru_cache(maxsize=1024)
def wall_clock(zone: str) -> WallClock:
    """The wall clock of an IANA zone.

    Raises:
        ConfigurationError: There is no zone of this name; the sentence gives names like it.
    """
    try:
        return WallClock(ZoneInfo(zone))
    # A folder of zones ("Europe") and a name that is a path are refused in ways of their own.
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ConfigurationError(f"there is no time zone {zone!r}{_near(zone)}; expected an IANA name") from exc


def _near(zone: str) -> str:
    by_lower = {name.lower(): name for name in available_timezones()}
    cities = {name.rpartition("/")[2]: name for name in by_lower}
    wanted = zone.lower().replace(" ", "_")
    found = [by_lower[name] for name in difflib.get_close_matches(wanted, by_lower, n=3, cutoff=0.75)]
    found += [
        by_lower[cities[city]] for city in difflib.get_close_matches(wanted.rpartition("/")[2], cities, n=2, cutoff=0.8)
    ]
    return f" (did you mean {', '.join(dict.fromkeys(found))}?)" if found else ""
