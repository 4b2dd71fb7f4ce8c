"""The local times that a cron expression names, in either direction. Knows no text and no time zone.

croniter could count them too; its releases before 7 leave some out where a day of month meets a day of week, and it
takes three to fifteen times as long.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime, time, timedelta

from entitycelery.scheduler.day_rule import DayRule

_SECOND = timedelta(seconds=1)

Numbers = tuple[int, ...]


class LocalTimes:
    """All times of all named days. `fields` are the hours, minutes and seconds, each sorted. Immutable."""

    __slots__ = ("_days", "_earliest", "_fields", "_latest")

    def __init__(self, days: DayRule, fields: tuple[Numbers, Numbers, Numbers]) -> None:
        self._days = days
        self._fields = fields
        self._earliest = _time(tuple(numbers[0] for numbers in fields))
        self._latest = _time(tuple(numbers[-1] for numbers in fields))

    def after(self, reading: datetime) -> datetime | None:
        """The first after `reading`; None: in fifty years there is none."""
        return self.at_or_after(reading.replace(microsecond=0) + _SECOND)

    def at_or_after(self, reading: datetime) -> datetime | None:
        """The first that is not before `reading`."""
        whole = reading.replace(microsecond=0) + (_SECOND if reading.microsecond else timedelta(0))
        today = whole.date()
        if self._days.has(today) and (found := _least(self._fields, (whole.hour, whole.minute, whole.second))):
            return datetime.combine(today, _time(found))
        day = self._days.after(today)
        return None if day is None else datetime.combine(day, self._earliest)

    def at_or_before(self, reading: datetime) -> datetime | None:
        """The last that is not after `reading`."""
        today = reading.date()
        if self._days.has(today) and (found := _most(self._fields, (reading.hour, reading.minute, reading.second))):
            return datetime.combine(today, _time(found))
        day = self._days.before(today)
        return None if day is None else datetime.combine(day, self._latest)


def _time(parts: Numbers) -> time:
    hour, minute, second = parts
    return time(hour, minute, second)


def _least(fields: tuple[Numbers, ...], bound: Numbers) -> Numbers | None:
    """The least choice of one number per field that is not below `bound`, as a clock counts."""
    if not fields:
        return ()
    numbers, rest = fields[0], fields[1:]
    at = bisect_left(numbers, bound[0])
    if at < len(numbers) and numbers[at] == bound[0]:
        tail = _least(rest, bound[1:])
        if tail is not None:
            return (bound[0], *tail)
        at += 1
    return None if at == len(numbers) else (numbers[at], *(later[0] for later in rest))


def _most(fields: tuple[Numbers, ...], bound: Numbers) -> Numbers | None:
    """The greatest choice of one number per field that is not above `bound`."""
    flipped = _least(
        tuple(tuple(-number for number in reversed(numbers)) for numbers in fields), tuple(-number for number in bound)
    )
    return None if flipped is None else tuple(-number for number in flipped)
