"""Which days a cron expression names: its fields day of month, month and day of week, as croniter reads them."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping
from datetime import date, timedelta

import msgspec

# A 29 February that is a Monday comes within forty years.
_SEARCH = timedelta(days=50 * 366)
_DAY = timedelta(days=1)
# Stands for the last day of the month, or the last of its kind in the month, where others have a number.
LAST = 0


class DayRule(msgspec.Struct, frozen=True, kw_only=True):
    """The days that the three fields name. None: the field is a star.

    nearest_to: Instead of month_days: the working day of the month that is nearest to this one (`15W`).
    nth: Instead of week_days: the how-manieth of its kind in the month, by day of the week (`5#2`, `L5`).
    either: Where both are given, a day of the month or a day of the week is enough.
    """

    months: frozenset[int] | None
    month_days: frozenset[int] | None
    week_days: frozenset[int] | None
    nearest_to: int | None
    nth: Mapping[int, frozenset[int]]
    either: bool

    def after(self, day: date) -> date | None:
        """The first named day after `day`; None: in fifty years there is none."""
        limit = day + _SEARCH
        while (day := day + _DAY) < limit:
            if not self._has_month(day):
                day = day.replace(day=_length(day))
            elif self._has_day(day):
                return day
        return None

    def before(self, day: date) -> date | None:
        """The last named day before `day`; None: in fifty years there was none."""
        limit = day - _SEARCH
        while (day := day - _DAY) > limit:
            if not self._has_month(day):
                day = day.replace(day=1)
            elif self._has_day(day):
                return day
        return None

    def has(self, day: date) -> bool:
        """Whether a day is named."""
        return self._has_month(day) and self._has_day(day)

    def _has_month(self, day: date) -> bool:
        return self.months is None or day.month in self.months

    def _has_day(self, day: date) -> bool:
        if not self.either or self.month_days is None or self.week_days is None:
            return self._has_month_day(day) and self._has_week_day(day)
        # W and # hold on either side: that is how croniter joins them.
        if self.nearest_to is not None and not self._has_month_day(day):
            return False
        if self.nth and not self._has_week_day(day):
            return False
        return self._has_month_day(day) or self._has_week_day(day)

    def _has_month_day(self, day: date) -> bool:
        if self.nearest_to is not None:
            return day.day == _working_day_near(self.nearest_to, day)
        return self.month_days is None or day.day in self.month_days or (LAST in self.month_days and _is_last(day))

    def _has_week_day(self, day: date) -> bool:
        week_day = day.isoweekday() % 7
        if self.nth:
            wanted = self.nth.get(week_day, frozenset())
            return (day.day + 6) // 7 in wanted or (LAST in wanted and _is_last(day, of=7))
        return self.week_days is None or week_day in self.week_days


def _length(month: date) -> int:
    return monthrange(month.year, month.month)[1]


def _is_last(day: date, of: int = 1) -> bool:
    return day.day + of > _length(day)


def _working_day_near(wanted: int, month: date) -> int:
    last = _length(month)
    day = min(wanted, last)
    week_day = month.replace(day=day).isoweekday()
    if week_day == 6:
        return day - 1 if day > 1 else 3
    if week_day == 7:
        return day + 1 if day < last else day - 2
    return day
