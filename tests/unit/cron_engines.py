"""Other libraries that know when a cron job fires, each asked in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from celery.schedules import crontab
from croniter import croniter
from cronsim import CronSim

from entitycelery.scheduler.cron_expression import cron_expression
from entitycelery.scheduler.fixed_times import FixedTimes
from entitycelery.scheduler.local_times import LocalTimes
from entitycelery.scheduler.real_intervals import RealIntervals
from entitycelery.scheduler.wall_clock import WallClock, wall_clock

# What an engine said instead of an instant.
Refusal = str


@dataclass(frozen=True)
class Question:
    """When does this expression, in this zone, fire after this instant? `fixed` None: as the expression says."""

    fields: tuple[str, str, str, str, str]
    zone: str
    start: datetime
    day_or: bool = True
    fixed: bool | None = None

    @property
    def expression(self) -> str:
        return " ".join(self.fields)

    @property
    def clock(self) -> WallClock:
        return wall_clock(self.zone)

    @property
    def times(self) -> LocalTimes:
        return cron_expression(self.expression, self.day_or).times

    @property
    def is_fixed(self) -> bool:
        return cron_expression(self.expression, self.day_or).is_fixed if self.fixed is None else self.fixed

    def but(self, **changes: object) -> Question:
        return replace(self, **changes)  # type: ignore[arg-type]

    def ours(self) -> datetime | None:
        kind = FixedTimes if self.is_fixed else RealIntervals
        tick = kind(self.times, self.clock).first(self.start)
        return tick and tick.at

    def local_start(self) -> datetime:
        return self.start.astimezone(ZoneInfo(self.zone))

    def __str__(self) -> str:
        joined = "" if self.day_or else ", both days"
        return f"{self.expression!r} in {self.zone} after {self.local_start().isoformat()}{joined}"


Answer = datetime | Refusal
Engine = Callable[[Question], Answer]


class _Endless(Exception):
    pass


class _BoundedCronSim(CronSim):
    """There are questions to which cronsim never comes to an answer."""

    ticks = 0

    def tick(self, seconds: int = 1) -> None:
        self.ticks += 1
        if self.ticks > 50_000:
            raise _Endless
        super().tick(seconds)


def ask_croniter(question: Question) -> Answer:
    found: datetime = croniter(question.expression, question.local_start(), day_or=question.day_or).get_next(datetime)
    return found.astimezone(UTC)


def ask_cronsim(question: Question) -> Answer:
    try:
        return next(_BoundedCronSim(question.expression, question.local_start())).astimezone(UTC)
    except _Endless:
        return "no answer"
    except StopIteration:
        return "never"


def ask_celery(question: Question) -> Answer:
    """What beat would wait for, had the task last run at the start."""
    start = question.local_start()
    minute, hour, month_day, month, week_day = question.fields
    schedule = crontab(minute, hour, week_day, month_day, month, nowfun=lambda: start)
    schedule.tz = ZoneInfo(question.zone)
    try:
        return question.start + schedule.remaining_estimate(start)
    except ValueError as exc:
        return str(exc)


ENGINES: dict[str, Engine] = {"croniter": ask_croniter, "cronsim": ask_cronsim, "celery": ask_celery}
