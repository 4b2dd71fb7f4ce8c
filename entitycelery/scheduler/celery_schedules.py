"""Celery's own schedules as recurrences. The one module here that knows Celery.

Nothing of Celery is asked what is due when: its objects say what is meant, and the recurrence does the rest. They are
Any in here, since what the type stubs say of them is not how they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from celery.schedules import BaseSchedule, crontab, crontab_parser, schedule, solar

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.every import Every
from entitycelery.scheduler.recurrence import Cron, Recurrence, Solar
from entitycelery.scheduler.tick import as_utc
from entitycelery.scheduler.wall_clock import wall_clock

_RANGE_STEP = re.compile(r"(\w+)-(\w+)/(\w+)$")
# A relative interval is rounded down to the largest that is not longer.
_UNITS = (timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1))


def recurrence_of(schedule_object: object, *, timezone: str, anchor: datetime) -> Recurrence:
    """The recurrence of a `crontab`, `schedule` or `solar` of Celery's, a timedelta or a number of seconds.

    A crontab is in its own time zone, or its `nowfun`'s, or its app's, or in `timezone`; an interval counts from
    `anchor`. Not checked: see `check` of the recurrence.

    Raises:
        ConfigurationError: It is none of these, or its time zone has no IANA name.
    """
    if isinstance(schedule_object, bool) or not isinstance(schedule_object, int | float | timedelta | BaseSchedule):
        raise _not_understood(schedule_object)
    if isinstance(schedule_object, int | float):
        return Every(schedule_object, anchor)
    if isinstance(schedule_object, timedelta):
        return Every(schedule_object.total_seconds(), anchor)
    if isinstance(schedule_object, crontab):
        return _cron(schedule_object, timezone)
    if isinstance(schedule_object, solar):
        return Solar(schedule_object.event, schedule_object.lat, schedule_object.lon)
    if isinstance(schedule_object, schedule) and _says_it_all(schedule_object):
        return _interval(schedule_object, _zone_of(schedule_object, timezone), anchor)
    raise _not_understood(schedule_object)


def _not_understood(schedule_object: object) -> ConfigurationError:
    return ConfigurationError(
        f"{schedule_object!r} is no schedule that can be stored; "
        "expected a crontab, schedule or solar of celery.schedules, a timedelta or a number of seconds"
    )


def _says_it_all(schedule_object: Any) -> bool:
    """Whether the class adds no rule of its own to the interval."""
    kind: Any = type(schedule_object)
    return kind.is_due is schedule.is_due and kind.remaining_estimate is schedule.remaining_estimate


def _interval(schedule_object: Any, timezone: str, anchor: datetime) -> Recurrence:
    if schedule_object.run_every is None:
        raise ConfigurationError(
            "a schedule without run_every never fires; expected a number of seconds or a timedelta"
        )
    if not schedule_object.relative:
        return Every(schedule_object.run_every.total_seconds(), anchor)
    if schedule_object.run_every == _UNITS[-1]:
        return Cron("0 0 * * *", timezone)
    clock = wall_clock(timezone)
    reading = clock.reading(as_utc(anchor))
    midnight = reading.replace(hour=0, minute=0, second=0, microsecond=0)
    unit = max(unit for unit in _UNITS if unit <= max(schedule_object.run_every, _UNITS[0]))
    return Every(schedule_object.run_every.total_seconds(), clock.reached(reading - (reading - midnight) % unit))


def _cron(cron: Any, timezone: str) -> Cron:
    fields = (
        _time_field(cron._orig_minute, cron.minute, 59),
        _time_field(cron._orig_hour, cron.hour, 23),
        _listed(cron.day_of_month, 31),
        _listed(cron.month_of_year, 12),
        _listed(cron.day_of_week, 7),
    )
    # In Celery both the day of month and the day of week must be right.
    return Cron(" ".join(fields), _zone_of(cron, timezone), day_or=False)


def _listed(values: Iterable[int], most: int) -> str:
    numbers = sorted(values)
    return "*" if len(numbers) == most else ",".join(map(str, numbers))


def _time_field(spec: object, values: Iterable[int], last: int) -> str:
    """A minute or an hour: stars and steps stay as written, for they make it a job of real intervals."""
    if not isinstance(spec, str):
        return ",".join(map(str, sorted(values)))
    return ",".join(_part(part, last) for part in spec.split(","))


def _part(part: str, last: int) -> str:
    if part.startswith("*"):
        return part
    if step := _RANGE_STEP.match(part):
        return _range_step(_number(step[1], last), _number(step[2], last), int(step[3]), last)
    return ",".join(map(str, sorted(crontab_parser(last + 1).parse(part))))


def _range_step(first: int, end: int, step: int, last: int) -> str:
    if first <= end:
        return _stepped(first, end, step)
    # Over the end of the hour or the day, where Celery keeps the step.
    rest = (first - last - 1) % step
    return _stepped(first, last, step) + (f",{_stepped(rest, end, step)}" if rest <= end else "")


def _stepped(first: int, end: int, step: int) -> str:
    # To croniter 5-5/2 is every second number of the whole field.
    return f"{first}-{end}/{step}" if first < end else str(first)


def _number(text: str, last: int) -> int:
    [number] = crontab_parser(last + 1).parse(text)
    return number


def _zone_of(schedule_object: Any, timezone: str) -> str:
    own = vars(schedule_object).get("tz")
    if own is None and schedule_object.nowfun is not None:
        own = schedule_object.nowfun().tzinfo
    if own is None and schedule_object._app is not None:
        own = schedule_object._app.timezone
    return timezone if own is None else _zone_name(own)


def _zone_name(zone: tzinfo) -> str:
    # zoneinfo and pytz.
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if name is not None:
        return str(name)
    if zone is UTC or (zone.tzname(None) == "UTC" and not zone.utcoffset(None)):
        return "UTC"
    raise ConfigurationError(f"the time zone {zone!r} of a schedule has no IANA name; expected one like Europe/Berlin")
