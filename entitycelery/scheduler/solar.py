"""Solar: what the sun does at a place, by ephem (the optional extra `solar`).

Every tick is computed from its own day alone, never from the one before: the same tick has the same name, to the
second, from wherever it is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from importlib import import_module
from typing import Any

import msgspec

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.tick import Tick, as_utc, instant_of, utc_tick

# As Celery has them: how far the sun's upper edge, or its centre, is from the horizon.
_TWILIGHTS = {"civil": "-6", "nautical": "-12", "astronomical": "-18"}
HORIZONS = {
    "sunrise": "-0:34",
    "sunset": "-0:34",
    "solar_noon": "0",
    **{f"dawn_{name}": angle for name, angle in _TWILIGHTS.items()},
    **{f"dusk_{name}": angle for name, angle in _TWILIGHTS.items()},
}
_MORNING = {"sunrise", "dawn_civil", "dawn_nautical", "dawn_astronomical"}
# Near the poles the sun rises once a year; at them it has no place to rise.
_SEARCH_DAYS = 2 * 366
_HALF_A_DAY = timedelta(hours=12)
# The next of its kind is never so near, even where the nights soon end.
_SAME = timedelta(hours=6)


class Solar(msgspec.Struct, frozen=True, tag_field="kind", tag="solar"):
    """An event of the sun (`sunrise`, `sunset`, `solar_noon`, `dawn_civil` ...) at a latitude and longitude."""

    event: str
    lat: float
    lon: float

    def __post_init__(self) -> None:
        # Equal recurrences are written alike.
        msgspec.structs.force_setattr(self, "lat", float(self.lat))
        msgspec.structs.force_setattr(self, "lon", float(self.lon))

    def first(self, after: datetime) -> Tick | None:
        """The first tick after an instant; None: none within two years."""
        instant = as_utc(after)
        day = self._day_of(instant)
        days = (day + timedelta(days=distance) for distance in range(-1, _SEARCH_DAYS))
        return next((tick for tick in self._ticks(days) if tick.at > instant), None)

    def following(self, tick: Tick) -> Tick | None:
        """The tick after `tick`, which may be a few seconds from where it is computed to be today."""
        return self.first(instant_of(tick) + _SAME)

    def latest(self, not_after: datetime) -> Tick | None:
        """The last tick that is due at an instant or before."""
        instant = as_utc(not_after)
        day = self._day_of(instant)
        days = (day - timedelta(days=distance) for distance in range(-1, _SEARCH_DAYS))
        return next((tick for tick in self._ticks(days) if tick.at <= instant), None)

    def describe(self) -> str:
        """The recurrence in words."""
        return f"{self.event} at latitude {self.lat:g}, longitude {self.lon:g}"

    def check(self) -> None:
        """Look whether it can ever fire.

        Raises:
            ConfigurationError: No such event or place, or ephem is not installed.
        """
        if self.event not in HORIZONS:
            raise ConfigurationError(f"there is no solar event {self.event!r}; expected one of {', '.join(HORIZONS)}")
        if not (-90 <= self.lat <= 90 and -180 <= self.lon <= 180):
            raise ConfigurationError(
                f"no place on earth has latitude {self.lat!r} and longitude {self.lon!r}; "
                "expected -90 to 90 and -180 to 180"
            )
        if self.first(datetime(2000, 1, 1, tzinfo=UTC)) is None:
            raise ConfigurationError(f"there is never a {self.describe()}; expected a place where there is")

    def _day_of(self, instant: datetime) -> date:
        return (instant + timedelta(hours=self.lon / 15)).date()

    def _ticks(self, days: Iterable[date]) -> Iterable[Tick]:
        found = (_event(self.event, self.lat, self.lon, day) for day in days)
        return (utc_tick(at) for at in found if at is not None)


@lru_cache(maxsize=4096)
def _event(event: str, lat: float, lon: float, day: date) -> datetime | None:
    """When the event is on a day that is a day by the sun there; None: that day it is not."""
    ephem = _ephem()
    sun, place = ephem.Sun(), ephem.Observer()
    place.lat, place.lon, place.elev, place.pressure = str(lat), str(lon), 0, 0
    place.horizon = HORIZONS[event]
    morning = datetime.combine(day, time(6)) - timedelta(hours=lon / 15)
    noon = _whole_second(place.next_transit(sun, start=ephem.Date(morning)))
    if event == "solar_noon":
        return noon.replace(tzinfo=UTC)
    start = noon - _HALF_A_DAY if event in _MORNING else noon
    find = place.next_rising if event in _MORNING else place.next_setting
    options = {"use_center": True} if event.startswith(("dawn", "dusk")) else {}
    try:
        at = _whole_second(find(sun, start=ephem.Date(start), **options))
    except ephem.CircumpolarError:
        return None
    return at.replace(tzinfo=UTC) if at - start <= _HALF_A_DAY else None


def _whole_second(instant: Any) -> datetime:
    found: datetime = instant.datetime()
    return (found + timedelta(milliseconds=500)).replace(microsecond=0)


def _ephem() -> Any:
    try:
        return import_module("ephem")
    except ImportError as exc:
        raise ConfigurationError(
            "solar schedules need the package ephem, which is not installed: pip install 'entitycelery[solar]'"
        ) from exc
