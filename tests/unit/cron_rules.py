"""Where other libraries answer otherwise, and why: every kind of difference is a rule here, and a row in daylight.md.

A rule of reading says how an engine reads an expression: when we read it so too, we must agree. What is left then is
the clock's: a rule of the clock looks at the two answers and says whether it explains them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.unit.cron_differences import Difference
from tests.unit.cron_engines import Question


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of difference, in words, with an example of it: the question, our answer and theirs in local time."""

    engine: str
    says: str
    example: Question
    ours: str
    theirs: str
    reads: Callable[[Question], Question] | None = None
    explains: Callable[[Difference], bool] | None = None


def _asked(expression: str, zone: str, start: str) -> Question:
    minute, hour, month_day, month, week_day = expression.split()
    instant = datetime.fromisoformat(start).astimezone(UTC)
    return Question((minute, hour, month_day, month, week_day), zone, instant)


def _stars_join_days(question: Question) -> Question:
    starred = question.fields[2].startswith("*") or question.fields[4].startswith("*")
    return question.but(day_or=question.day_or and not starred)


def _first_letters_decide(question: Question) -> Question:
    return question.but(fixed=not any(field.startswith("*") for field in question.fields[:2]))


def _weeks_have_eight_days(question: Question) -> Question:
    *others, week_day = question.fields
    step = re.fullmatch(r"(\d)/(\d+)", week_day)
    days = ",".join(map(str, range(int(step[1]), 8, int(step[2])))) if step else week_day
    return question.but(fields=(*others, days))


def _is_past(difference: Difference) -> bool:
    start = difference.question.start
    return difference.in_second_pass(start) and isinstance(difference.theirs, datetime) and difference.theirs <= start


RULES = {
    "croniter-fires-in-gap": Rule(
        engine="croniter",
        says="A rhythm at certain hours fires at the end of the gap that skips them; ours leaves out what is skipped.",
        example=_asked("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+01:00"),
        ours="2026-03-30T02:00:00+02:00",
        theirs="2026-03-29T03:00:00+02:00",
        explains=lambda it: not it.question.is_fixed and it.theirs_is_earlier and it.at_end_of_gap(),
    ),
    "croniter-repeats-fixed-time": Rule(
        engine="croniter",
        says="Asked in the repeated hour, or shortly before, it fires a fixed time a second time; ours fires it once.",
        example=_asked("30 2 * * *", "Europe/Berlin", "2026-10-25T02:40:00+02:00"),
        ours="2026-10-26T02:30:00+01:00",
        theirs="2026-10-25T02:30:00+01:00",
        explains=lambda it: it.question.is_fixed and it.theirs_is_earlier and it.in_second_pass(it.theirs),
    ),
    "croniter-misses-repeated-time": Rule(
        engine="croniter",
        says="A rhythm at certain hours does not fire in the second pass through a part of such an hour; ours does.",
        example=_asked("* 0-4/2 * * *", "Pacific/Chatham", "2026-04-05T03:19:00+13:45"),
        ours="2026-04-05T02:45:00+12:45",
        theirs="2026-04-05T04:00:00+12:45",
        explains=lambda it: not it.question.is_fixed and it.theirs_is_later and it.in_second_pass(it.ours),
    ),
    "cronsim-stars-join-days": Rule(
        engine="cronsim",
        says="Day of month and day of week must both be right if either begins with a star, as in Debian's cron.",
        example=_asked("0 0 */2 * 1", "UTC", "2026-01-01T00:00:00+00:00"),
        ours="2026-01-03T00:00:00+00:00",
        theirs="2026-01-05T00:00:00+00:00",
        reads=_stars_join_days,
    ),
    "cronsim-first-letters-decide": Rule(
        engine="cronsim",
        says="A job is at fixed times if neither minute nor hour begins with a star, though there be a step.",
        example=_asked("5-59/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+01:00"),
        ours="2026-03-30T02:05:00+02:00",
        theirs="2026-03-29T03:00:00+02:00",
        reads=_first_letters_decide,
    ),
    "cronsim-weeks-have-eight-days": Rule(
        engine="cronsim",
        says="A step through the days of the week goes on to 7, which is Sunday; croniter's ends at 6.",
        example=_asked("0 0 * * 1/3", "UTC", "2026-01-02T00:00:00+00:00"),
        ours="2026-01-05T00:00:00+00:00",
        theirs="2026-01-04T00:00:00+00:00",
        reads=_weeks_have_eight_days,
    ),
    "cronsim-answers-with-past": Rule(
        engine="cronsim",
        says="Asked in the second pass, it answers with a time of the first, which is past.",
        example=_asked("30 2 * * *", "Europe/Berlin", "2026-10-25T02:10:00+01:00"),
        ours="2026-10-26T02:30:00+01:00",
        theirs="2026-10-25T02:30:00+02:00",
        explains=_is_past,
    ),
    "cronsim-loses-part-of-an-hour": Rule(
        engine="cronsim",
        says="After a change by half an hour, or in the middle of an hour, a rhythm begins up to an hour late.",
        example=_asked("*/15 3 * * *", "Australia/Lord_Howe", "2026-04-05T00:30:00+11:00"),
        ours="2026-04-05T03:00:00+10:30",
        theirs="2026-04-05T03:30:00+10:30",
        explains=lambda it: not it.question.is_fixed and it.theirs_is_later and it.after_an_odd_change(),
    ),
    "cronsim-needs-midnight": Rule(
        engine="cronsim",
        says="It loses a day whose midnight is skipped.",
        example=_asked("* 1 * * 0", "Africa/Casablanca", "2008-05-31T12:00:00+00:00"),
        ours="2008-06-01T01:00:00+01:00",
        theirs="2008-06-08T01:00:00+01:00",
        explains=lambda it: it.theirs_is_later and it.on_a_day_without_midnight(),
    ),
    "cronsim-fires-in-midnight-gap": Rule(
        engine="cronsim",
        says="Where midnight is skipped, a rhythm in the first hour of certain days fires at the end of the gap.",
        example=_asked("* 0 * * 5", "Asia/Damascus", "2010-04-01T12:00:00+02:00"),
        ours="2010-04-09T00:00:00+03:00",
        theirs="2010-04-02T01:00:00+03:00",
        explains=lambda it: not it.question.is_fixed and it.theirs_is_earlier and it.at_end_of_gap(),
    ),
    "cronsim-never-answers": Rule(
        engine="cronsim",
        says="Where a month begins in an hour that is repeated from 00:01, it may count for ever.",
        example=_asked("43,17,36 * 28 */10 0", "America/St_Johns", "2009-06-19T13:40:00-02:30"),
        ours="2009-11-01T00:17:00-03:30",
        theirs="no answer",
        explains=lambda it: it.theirs == "no answer" and it.after_an_odd_change(),
    ),
    "celery-puts-off-skipped-time": Rule(
        engine="celery",
        says="A skipped time fires as much later as is skipped, 02:30 at 03:30, also of a rhythm.",
        example=_asked("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+01:00"),
        ours="2026-03-29T03:00:00+02:00",
        theirs="2026-03-29T03:30:00+02:00",
        explains=lambda it: it.put_off(),
    ),
    "celery-answers-with-past": Rule(
        engine="celery",
        says="Asked in the second pass, it answers with a time of the first, which is past, so it fires at once.",
        example=_asked("*/10 * * * *", "Europe/Berlin", "2026-10-25T02:15:00+01:00"),
        ours="2026-10-25T02:20:00+01:00",
        theirs="2026-10-25T02:20:00+02:00",
        explains=_is_past,
    ),
    "celery-misses-repeated-time": Rule(
        engine="celery",
        says="A rhythm does not fire in the second pass.",
        example=_asked("*/10 * * * *", "Europe/Berlin", "2026-10-25T02:50:00+02:00"),
        ours="2026-10-25T02:00:00+01:00",
        theirs="2026-10-25T03:00:00+01:00",
        explains=lambda it: not it.question.is_fixed and it.theirs_is_later and it.in_second_pass(it.ours),
    ),
}


def explained(difference: Difference, engine: str) -> bool:
    """Whether a rule of the clock explains it."""
    return any(rule.explains and rule.engine == engine and rule.explains(difference) for rule in RULES.values())


def as_read_by(engine: str, question: Question) -> Question:
    """The question as an engine reads it."""
    for rule in RULES.values():
        if rule.reads and rule.engine == engine:
            question = rule.reads(question)
    return question
