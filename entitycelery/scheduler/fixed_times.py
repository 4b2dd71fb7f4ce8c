"""Cron jobs at fixed times of day: each nominal time once, whatever is done to the clock on the wall."""

from __future__ import annotations

from datetime import datetime

from entitycelery.scheduler.local_times import LocalTimes
from entitycelery.scheduler.tick import Tick, as_utc, reading_of
from entitycelery.scheduler.wall_clock import WallClock


class FixedTimes:
    """A time fires when the clock first shows it, or has jumped over it, so it goes by the furthest reading so far."""

    def __init__(self, times: LocalTimes, clock: WallClock) -> None:
        self._times = times
        self._clock = clock

    def first(self, after: datetime) -> Tick | None:
        return self._tick(self._times.after(self._clock.furthest(after)))

    def following(self, tick: Tick) -> Tick | None:
        reading = reading_of(tick)
        return self.first(as_utc(tick.at)) if reading is None else self._tick(self._times.after(reading))

    def latest(self, not_after: datetime) -> Tick | None:
        return self._tick(self._times.at_or_before(self._clock.furthest(not_after)))

    def _tick(self, nominal: datetime | None) -> Tick | None:
        if nominal is None:
            return None
        return Tick(nominal.isoformat(timespec="seconds"), self._clock.reached(nominal))
