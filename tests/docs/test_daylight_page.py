"""The page about daylight says what schedules do: its tables are computed anew, and its differences are the rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from entitycelery.scheduler.recurrence import Cron, Every, Recurrence, Tick
from tests.docs.blocks import ROOT
from tests.unit.cron_rules import RULES, Rule

PAGE = (ROOT / "docs" / "explanation" / "daylight.md").read_text()
BEGIN, END = time(0, 30), time(4, 30)
_NIGHT = re.compile(r"^### (?P<zone>\w+/\w+), (?P<day>[\d-]+)\n(?P<text>.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
_JOB = re.compile(r"^\| `(?P<job>[^`]+)` \| (?P<fires>[^|]+) \| (?P<named>[^|]+) \|$", re.MULTILINE)
_KIND = re.compile(r"^\| `(?P<job>[^`]+)` \| (?P<kind>fixed times|rhythm) \|", re.MULTILINE)
_CHANGED = re.compile(r"^\| `(?P<job>[^`]+)` \| (?P<before>[^|]+) \| (?P<since>[^|]+) \|$", re.MULTILINE)

NIGHTS = [(match["zone"], match["day"], match["text"]) for match in _NIGHT.finditer(PAGE)]


def test_each_zone_is_shown_in_spring_and_in_autumn() -> None:
    zones = [zone for zone, _, _ in NIGHTS]

    assert zones == [zone for zone in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe") for _ in range(2)]


@pytest.mark.parametrize(("zone", "day", "text"), NIGHTS, ids=lambda value: value if len(value) < 30 else "")
def test_every_job_of_a_night_fires_as_the_table_says(zone: str, day: str, text: str) -> None:
    rows = [match.groups() for match in _JOB.finditer(text)]

    assert len(rows) >= 6
    assert rows == [row_of(job, zone, day) for job, _, _ in rows]


def row_of(job: str, zone: str, day: str) -> tuple[str, str, str]:
    """The cells of a job: what it fires in the night, and what these ticks are named."""
    begin, end = (datetime.combine(datetime.fromisoformat(day), edge, ZoneInfo(zone)) for edge in (BEGIN, END))
    found = list(ticks_between(begin, end, recurrence(job, zone)))
    if not found:
        return job, "not in this night", "-"
    fires = [tick.at.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes")[11:] for tick in found]
    # A date and the seconds are in every name.
    named = [tick.nominal[11:16] + tick.nominal[19:] for tick in found]
    return job, ", ".join(fires), "as it fires" if named == fires else ", ".join(named)


def recurrence(job: str, zone: str) -> Recurrence:
    if job.startswith("every_s="):
        return Every(float(job.removeprefix("every_s=")), datetime(2026, 1, 1, tzinfo=UTC))
    return Cron(job, zone)


def ticks_between(begin: datetime, end: datetime, of: Recurrence) -> Iterator[Tick]:
    tick = of.first(begin - timedelta(microseconds=1))
    while tick is not None and tick.at < end.astimezone(UTC):
        yield tick
        tick = of.following(tick)


@pytest.mark.parametrize(("day", "count", "length"), [("2026-03-29", 92, "short"), ("2026-10-25", 100, "long")])
def test_a_rhythm_of_a_quarter_fires_as_often_as_the_day_is_long(day: str, count: int, length: str) -> None:
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("Europe/Berlin"))

    found = list(ticks_between(begin, begin + timedelta(days=1), Cron("*/15 * * * *", "Europe/Berlin")))

    assert len(found) == count
    assert f"{count} times on the {length} " in PAGE


def test_every_job_is_of_the_kind_that_the_page_says() -> None:
    kinds = _KIND.findall(PAGE)

    assert len(kinds) >= 6
    assert kinds == [(job, "fixed times" if Cron(job).is_fixed else "rhythm") for job, _ in kinds]


def test_the_page_has_every_rule_by_which_others_differ_and_no_other() -> None:
    section = PAGE.partition("## Where other libraries")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]

    assert rows == [row_of_rule(rule) for rule in RULES.values()]


def row_of_rule(rule: Rule) -> str:
    asked = rule.example
    library = rule.engine.replace("celery", "Celery")
    start = asked.local_start().isoformat(timespec="minutes")
    answers = (answer.replace(":00+", "+").replace(":00-", "-") for answer in (rule.ours, rule.theirs))
    return " | ".join((f"| {library}", rule.says, f"`{asked.expression}` in {asked.zone}", start, *answers)) + " |"


def test_the_texts_that_croniter_reads_otherwise_since_7_are_read_so() -> None:
    section = PAGE.partition("## What croniter 7")[2]
    rows = _CHANGED.findall(section)

    assert [job for job, _, _ in rows] == ["59/15 * * * *", "0 23/6 * * *", "0 0 * * 6/1"]
    for job, _, since in rows:
        [values] = [values for field, values in zip(job.split(), croniter.expand(job)[0], strict=True) if "/" in field]
        assert since.split()[-1] == ", ".join(map(str, values))
