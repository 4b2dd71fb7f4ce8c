"""Two answers to one question about a cron job, and what the clock has to do with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from tests.unit.cron_engines import Answer, Question

_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)
_NEAR = timedelta(days=2)


@dataclass(frozen=True)
class Difference:
    """What we and an engine answer to one question, as the engine reads it."""

    question: Question
    ours: datetime | None
    theirs: Answer

    @cached_property
    def change(self) -> datetime | None:
        """The last change of the clock before their answer or at it, if it is near."""
        return self._change_before(self.theirs) if isinstance(self.theirs, datetime) else None

    @property
    def theirs_is_later(self) -> bool:
        return isinstance(self.theirs, datetime) and (self.ours is None or self.ours < self.theirs)

    @property
    def theirs_is_earlier(self) -> bool:
        return isinstance(self.theirs, datetime) and (self.ours is None or self.theirs < self.ours)

    def in_second_pass(self, instant: Answer | None) -> bool:
        """Whether the clock has shown the time before, and was put back."""
        return isinstance(instant, datetime) and instant.astimezone(ZoneInfo(self.question.zone)).fold == 1

    def at_end_of_gap(self) -> bool:
        """Whether theirs is the moment when the clock is put forward, over a time that the expression names."""
        if self.change is None or self.change != self.theirs or self.jump(self.change) <= timedelta(0):
            return False
        end = self.reading(self.change)
        named = self.question.times.at_or_after(end - self.jump(self.change))
        return named is not None and named < end

    def put_off(self) -> bool:
        """Whether theirs is a skipped time that the expression names, later by as much as is skipped."""
        if self.change is None or not isinstance(self.theirs, datetime):
            return False
        skipped = self.reading(self.theirs) - self.jump(self.change)
        end = self.reading(self.change)
        return self.is_named(skipped) and end - self.jump(self.change) <= skipped < end

    def after_an_odd_change(self) -> bool:
        """Whether a change near our answer was not by whole hours, or not at a full hour."""
        change = self.ours and self._change_before(self.ours)
        return change is not None and bool(self.jump(change) % _HOUR or self.reading(change).minute)

    def on_a_day_without_midnight(self) -> bool:
        """Whether the day of our answer begins later than at 00:00."""
        change = self.ours and self._change_before(self.ours)
        if self.ours is None or change is None:
            return False
        midnight = self.reading(self.ours).replace(hour=0, minute=0)
        return self.reading(change) - self.jump(change) <= midnight < self.reading(change)

    def jump(self, change: datetime) -> timedelta:
        """By how much the clock is put forward; negative: back."""
        return self.reading(change) - self.reading(change - _SECOND) - _SECOND

    def reading(self, instant: datetime) -> datetime:
        return self.question.clock.reading(instant)

    def is_named(self, reading: datetime) -> bool:
        return self.question.times.at_or_before(reading) == reading

    def _change_before(self, instant: datetime) -> datetime | None:
        return self.question.clock.last_change(instant - _NEAR, instant)
