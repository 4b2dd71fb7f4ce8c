"""A cron expression, read by croniter: what it names, whether it is a job at fixed times, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from croniter import croniter

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.day_rule import LAST, DayRule
from entitycelery.scheduler.local_times import LocalTimes, Numbers

ALIASES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
# Each with its last value and what may be in it.
FIELDS = (
    ("minute", "59", "0-59"),
    ("hour", "23", "0-23"),
    ("day of month", "31", "1-31, L"),
    ("month", "12|dec", "1-12, jan-dec"),
    ("day of week", "6|sat", "0-7, sun-sat"),
    ("second", "59", "0-59"),
)
_MINUTE, _HOUR, _MONTH_DAY, _MONTH, _WEEK_DAY, _SECOND = range(6)
# H wants a text to hash, and R is another time at every look.
_RANDOM = re.compile(r"(?:^|,)[hr](?:$|[,(/])", re.IGNORECASE)
# Releases of croniter do not agree on it either.
_EQUAL_RANGE = re.compile(r"\b0*(\w+)-0*\1\b", re.IGNORECASE)
# Any will do: there is no year in the calendar of an expression.
_START = datetime(2000, 1, 1)


class CronExpression(msgspec.Struct, frozen=True):
    """A valid expression: the local times it names, and whether they are single times and no rhythm."""

    times: LocalTimes
    is_fixed: bool


@lru_cache(maxsize=4096)
def cron_expression(text: str, day_or: bool) -> CronExpression:
    """The expression that a text spells.

    Raises:
        ConfigurationError: It is no cron expression, or no day is ever as it says.
    """
    if wrong := _wrong_form(text):
        raise ConfigurationError(f"cron expression {text!r}: {wrong}")
    try:
        read = croniter(_unmistakable(text), _START)
    # Its own errors are ValueErrors; a text of the wrong kind is a TypeError.
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(f"cron expression {text!r}: {_wrong_field(text, exc)}") from exc
    seconds = _numbers(read, _SECOND, range(60)) if len(read.expanded) > _SECOND else (0,)
    fields = (_numbers(read, _HOUR, range(24)), _numbers(read, _MINUTE, range(60)), seconds)
    times = LocalTimes(_day_rule(read, day_or), fields)
    if times.after(_START) is None:
        raise ConfigurationError(f"cron expression {text!r}: no day is ever as it says; expected a day that exists")
    return CronExpression(times, not any(_is_rhythm(text, read, field) for field in (_MINUTE, _HOUR, _SECOND)))


def _unmistakable(text: str) -> str:
    """The text without what releases of croniter read in two ways: 59/15 is 59, to 5 and 6 it was the whole field."""
    fields = text.lower().split()
    for place, (_, last, _) in enumerate(FIELDS[: len(fields)]):
        step = re.compile(rf"(?P<start>{last})/0*[1-9]\d*")
        parts = ((step.fullmatch(part), part) for part in fields[place].split(","))
        fields[place] = ",".join(match["start"] if match else part for match, part in parts)
    return " ".join(fields)


def _is_rhythm(text: str, read: Any, field: int) -> bool:
    """Whether a field of the time says how often, and not when."""
    if field >= len(read.expanded):
        return False
    written = (read.expressions if text.startswith("@") else text.split())[field]
    return "*" in written or "/" in written or "*" in read.expanded[field]


def _numbers(read: Any, field: int, every: range) -> Numbers:
    return tuple(sorted(_chosen(read, field) or every))


def _chosen(read: Any, field: int) -> frozenset[int] | None:
    """The numbers of a field, None for a star."""
    values = read.expanded[field]
    return None if "*" in values else _places(values)


def _places(values: Iterable[Any]) -> frozenset[int]:
    return frozenset(LAST if value == "l" else value for value in values)


def _day_rule(read: Any, day_or: bool) -> DayRule:
    return DayRule(
        months=_chosen(read, _MONTH),
        month_days=_chosen(read, _MONTH_DAY),
        week_days=_chosen(read, _WEEK_DAY),
        # Releases before 7 do not know it, and refuse the text.
        nearest_to=next(iter(getattr(read, "nearest_weekday", ())), None),
        nth={week_day: _places(which) for week_day, which in read.nth_weekday_of_month.items()},
        either=day_or,
    )


def _wrong_form(text: str) -> str | None:
    if text.startswith("@"):
        return None if text.lower() in ALIASES else f"there is no such name; expected one of {', '.join(ALIASES)}"
    fields = text.split()
    if len(fields) not in (5, 6):
        wanted = "expected 5 (minute, hour, day of month, month, day of week), or 6 with the second last"
        return f"it has {len(fields)} fields; {wanted}"
    if not text.isascii():
        return "it has characters other than ASCII; expected digits, names, * , - / and #"
    if any(_RANDOM.search(field) for field in fields):
        return "H and R name no certain time; expected numbers, lists, ranges and steps"
    if equal := _EQUAL_RANGE.search(text):
        return f"{equal[0]!r} is {equal[1]} to some and the whole field to others; expected {equal[1]} or *"
    return None


def _wrong_field(text: str, error: Exception) -> str:
    fields = text.split()
    for place, (field, (name, _, expected)) in enumerate(zip(fields, FIELDS, strict=False)):
        alone = ["*"] * len(fields)
        alone[place] = field
        if not croniter.is_valid(" ".join(alone)):
            return f"{field!r} is no {name}; expected {expected}, or lists, ranges and steps of them"
    return f"{error}; expected fields that go together"
