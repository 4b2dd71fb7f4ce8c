"""Celery's schedules as they are: what a crontab, a schedule or a solar means is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar
from croniter import croniter

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.celery_schedules import recurrence_of
from entitycelery.scheduler.recurrence import Cron, Every, Recurrence, Solar, Tick
from tests.naming import shown

ANCHOR = datetime(2026, 1, 1, 13, 17, 42, 5, tzinfo=UTC)


def taken(schedule_object: object, timezone: str = "Europe/Berlin") -> Recurrence:
    return recurrence_of(schedule_object, timezone=timezone, anchor=ANCHOR)


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ({}, "* * * * *"),
        ({"minute": 30, "hour": 7}, "30 7 * * *"),
        ({"minute": "*/15"}, "*/15 * * * *"),
        ({"minute": "0", "hour": "8-17/2,20"}, "0 8-17/2,20 * * *"),
        ({"minute": "0,30", "hour": "1-3"}, "0,30 1,2,3 * * *"),
        ({"minute": {30, 0}, "hour": [3, 1]}, "0,30 1,3 * * *"),
        ({"minute": "50-10/20"}, "50-59/20,10 * * * *"),
        ({"minute": "5-5/2"}, "5 * * * *"),
        ({"day_of_week": "mon-fri"}, "* * * * 1,2,3,4,5"),
        ({"day_of_week": "saturday,sunday"}, "* * * * 0,6"),
        ({"day_of_month": "*/2", "month_of_year": "jan-mar"}, "* * 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31 1,2,3 *"),
        ({"day_of_month": "1-31", "month_of_year": "*/1", "day_of_week": "0-6"}, "* * * * *"),
    ],
)
def test_a_crontab_is_an_expression_that_keeps_its_stars_and_steps(fields: dict[str, Any], expression: str) -> None:
    assert taken(crontab(**fields)) == Cron(expression, "Europe/Berlin", day_or=False)


def test_in_a_crontab_both_days_must_be_right() -> None:
    friday_13 = taken(crontab(minute=0, hour=0, day_of_month=13, day_of_week="fri"), "UTC")

    assert friday_13.first(ANCHOR) == Tick("2026-02-13T00:00:00", datetime(2026, 2, 13, tzinfo=UTC))


def test_a_step_of_a_crontab_is_a_rhythm_and_a_list_is_not() -> None:
    step, listed = taken(crontab(minute="*/30", hour=2)), taken(crontab(minute="0,30", hour=2))

    assert isinstance(step, Cron)
    assert isinstance(listed, Cron)
    assert (step.is_fixed, listed.is_fixed) == (False, True)


def test_croniter_reads_out_of_it_what_celery_has_in_it() -> None:
    random = Random(7)

    for _ in range(500):
        made = crontab(minute=_field(random, 59), hour=_field(random, 23))
        recurrence = taken(made)
        assert isinstance(recurrence, Cron)
        minutes, hours = croniter.expand(recurrence.expression)[0][:2]
        assert (set(range(60)) if "*" in minutes else set(minutes)) == made.minute, made
        assert (set(range(24)) if "*" in hours else set(hours)) == made.hour, made


def _field(random: Random, most: int) -> str:
    """Celery's ranges go over the end of the hour, and their steps with them."""
    first, last, step = random.randint(0, most), random.randint(0, most), random.randint(1, 20)
    forms = ["*", f"*/{step}", f"{first}-{last}", f"{first}-{last}/{step}", str(first)]
    return ",".join(random.sample(forms, random.randint(1, 3)))


class Pytz(tzinfo):
    """As pytz has its name."""

    zone = "Asia/Tokyo"


class Nameless(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, moment: datetime | None) -> str:
        return "CET"


def crontab_in(zone: tzinfo) -> crontab:
    made = crontab()
    made.tz = zone
    return made


def tokyo_app() -> Celery:
    return Celery(set_as_current=False, config_source={"timezone": "Asia/Tokyo"})


@pytest.mark.parametrize(
    ("made", "zone"),
    [
        (crontab(), "Europe/Berlin"),
        (crontab(app=tokyo_app()), "Asia/Tokyo"),
        (crontab(app=tokyo_app(), nowfun=lambda: datetime.now(ZoneInfo("America/New_York"))), "America/New_York"),
        (crontab(nowfun=lambda: datetime.now(UTC)), "UTC"),
        # As a naive nowfun has no zone to give.
        (crontab(nowfun=lambda: datetime.now()), "Europe/Berlin"),
        # As django-celery-beat has it.
        (crontab_in(ZoneInfo("Asia/Kolkata")), "Asia/Kolkata"),
        (crontab_in(Pytz()), "Asia/Tokyo"),
        (crontab_in(UTC), "UTC"),
    ],
)
def test_a_crontab_is_in_its_own_zone_or_its_clocks_or_its_apps(made: crontab, zone: str) -> None:
    recurrence = taken(made)

    assert isinstance(recurrence, Cron)
    assert recurrence.timezone == zone


def test_a_zone_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="of a schedule has no IANA name; expected one like Europe/Berlin"):
        taken(crontab_in(Nameless()))


@pytest.mark.parametrize("made", [90, 90.0, timedelta(seconds=90), schedule(90), schedule(timedelta(seconds=90))])
def test_an_interval_counts_from_the_anchor(made: object) -> None:
    assert taken(made) == Every(90, ANCHOR)


@pytest.mark.parametrize(
    ("every", "anchor"),
    [
        (timedelta(seconds=30), datetime(2026, 1, 1, 13, 17, 42, tzinfo=UTC)),
        (timedelta(minutes=5), datetime(2026, 1, 1, 13, 17, tzinfo=UTC)),
        (timedelta(hours=2), datetime(2026, 1, 1, 13, 0, tzinfo=UTC)),
        # Midnight in Berlin.
        (timedelta(days=2), datetime(2025, 12, 31, 23, 0, tzinfo=UTC)),
    ],
)
def test_a_relative_interval_counts_from_the_full_minute_hour_or_day(every: timedelta, anchor: datetime) -> None:
    assert taken(schedule(every, relative=True)) == Every(every.total_seconds(), anchor)


def test_a_relative_day_is_every_midnight_there() -> None:
    assert taken(schedule(timedelta(days=1), relative=True)) == Cron("0 0 * * *", "Europe/Berlin")


def test_a_relative_hour_is_celerys() -> None:
    made = schedule(timedelta(hours=2), relative=True, nowfun=lambda: ANCHOR)
    first = taken(made, "UTC").first(ANCHOR)

    assert first is not None
    assert first.at == ANCHOR + made.remaining_estimate(ANCHOR)


def test_a_solar_is_itself() -> None:
    assert taken(solar("sunset", 52, 13)) == Solar("sunset", 52, 13)


class Odd(schedule):
    def is_due(self, last_run_at: datetime) -> Any:
        return False, 1.0


@pytest.mark.parametrize("made", [None, True, "* * * * *", crontab, Odd(5), object()], ids=shown)
def test_what_is_no_schedule_of_celerys_is_refused(made: object) -> None:
    with pytest.raises(ConfigurationError, match="is no schedule that can be stored; expected a crontab, schedule or"):
        taken(made)


def test_an_interval_of_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a schedule without run_every never fires"):
        taken(schedule())
