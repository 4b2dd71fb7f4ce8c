"""Cron jobs with a rhythm: every instant at which the clock on the wall shows a time of the expression.

A clock that is put forward skips times, one that is put back shows them twice; so the names have the offset in them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from entitycelery.scheduler.local_times import LocalTimes
from entitycelery.scheduler.tick import MICROSECOND, Tick, instant_of
from entitycelery.scheduler.wall_clock import FURTHEST_APART, WallClock

# Times that the zone always skips would be looked for without end.
LONGEST_WAIT = timedelta(days=50 * 366)


class RealIntervals:
    """Walks from one change of the clock to the next: between two, local time and real time run alike."""

    def __init__(self, times: LocalTimes, clock: WallClock) -> None:
        self._times = times
        self._clock = clock

    def first(self, after: datetime) -> Tick | None:
        instant, find = after, self._times.after
        while instant - after < LONGEST_WAIT:
            shown = self._clock.reading(instant)
            match = find(shown)
            if match is None:
                return None
            due = instant + (match - shown)
            near = instant + FURTHEST_APART
            if change := self._clock.first_change(instant, min(due, near)):
                instant, find = change, self._times.at_or_after
            elif due <= near:
                return self._tick(due)
            else:
                # However the clock is changed on the way, it shows no time before the match until shortly before.
                instant, find = max(near, due - FURTHEST_APART), self._times.after
        return None

    def following(self, tick: Tick) -> Tick | None:
        return self.first(instant_of(tick))

    def latest(self, not_after: datetime) -> Tick | None:
        instant = not_after
        while not_after - instant < LONGEST_WAIT:
            shown = self._clock.reading(instant)
            match = self._times.at_or_before(shown)
            if match is None:
                return None
            due = instant - (shown - match)
            near = instant - FURTHEST_APART
            if change := self._clock.last_change(max(due, near), instant):
                instant = change - MICROSECOND
            elif due >= near:
                return self._tick(due)
            else:
                instant = min(near, due + FURTHEST_APART)
        return None

    def _tick(self, due: datetime) -> Tick:
        return Tick(self._clock.local(due).isoformat(timespec="seconds"), due)
