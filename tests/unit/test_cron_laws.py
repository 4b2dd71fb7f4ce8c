"""Laws of cron jobs: what is walked forwards, backwards and minute by minute is the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

from croniter import CroniterBadDateError, croniter
from hypothesis import assume, given
from hypothesis import strategies as st

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.cron_expression import cron_expression
from entitycelery.scheduler.recurrence import Cron, Tick
from entitycelery.scheduler.wall_clock import wall_clock
from tests.unit.cron_questions import question

MINUTE = timedelta(minutes=1)
MICROSECOND = timedelta(microseconds=1)

seeds = st.integers(0, 2**32)


def asked(seed: int) -> tuple[Cron, datetime]:
    """A cron job that can be, in a zone, and an instant that is often near a change of the clock."""
    wanted = question(Random(seed), plain=False)
    cron = Cron(wanted.expression, wanted.zone, wanted.day_or)
    try:
        cron.check()
    except ConfigurationError:
        assume(False)
    return cron, wanted.start


@given(seeds)
def test_nothing_is_between_an_instant_and_its_first_tick(seed: int) -> None:
    cron, start = asked(seed)

    first = cron.first(start)

    assert first is not None
    assert first.at > start
    before = cron.latest(first.at - MICROSECOND)
    assert before is None or before.at <= start
    last_of_instant = cron.latest(first.at)
    assert last_of_instant is not None
    assert last_of_instant.at == first.at


@given(seeds)
def test_what_is_walked_forth_is_walked_back(seed: int) -> None:
    cron, start = asked(seed)
    tick = cron.first(start)

    for _ in range(20):
        assert tick is not None
        following = cron.following(tick)
        if following is None:
            break
        if following.at > tick.at:
            assert cron.latest(following.at - MICROSECOND) == tick
            assert cron.latest(tick.at + (following.at - tick.at) / 2) == tick
        tick = following


@given(seeds)
def test_walking_by_name_is_watching_the_clock_minute_by_minute(seed: int) -> None:
    cron, start = asked(seed)
    start, end = start.replace(second=0), start.replace(second=0) + timedelta(hours=30)

    walked = []
    tick = cron.first(start)
    while tick is not None and tick.at <= end:
        walked.append(tick)
        tick = cron.following(tick)

    assert walked == (watched_fixed if cron.is_fixed else watched_rhythm)(cron, start, end)
    assert len({tick.nominal for tick in walked}) == len(walked)


def watched_rhythm(cron: Cron, start: datetime, end: datetime) -> list[Tick]:
    """Every minute after `start` whose reading is named."""
    clock, times = wall_clock(cron.timezone), cron_expression(cron.expression, cron.day_or).times
    found, instant = [], start
    while (instant := instant + MINUTE) <= end:
        reading = clock.reading(instant)
        if times.at_or_before(reading) == reading:
            found.append(Tick(clock.local(instant).isoformat(timespec="seconds"), instant))
    return found


def watched_fixed(cron: Cron, start: datetime, end: datetime) -> list[Tick]:
    """Every named time at the minute when a reading is first as far."""
    clock, times = wall_clock(cron.timezone), cron_expression(cron.expression, cron.day_or).times
    found: list[Tick] = []
    instant = start - timedelta(days=2)
    furthest = clock.reading(instant)
    while (instant := instant + MINUTE) <= end:
        reading = clock.reading(instant)
        while (named := times.after(furthest)) is not None and named <= reading:
            if instant > start:
                found.append(Tick(named.isoformat(timespec="seconds"), instant))
            furthest = named
        furthest = max(furthest, reading)
    return found


DAYS = st.sampled_from(["*", "?", "L", "1W", "15W", "31W", "*/7", "13", "31", "1-31", "10-20/3", "L,15"])
WEEK_DAYS = st.sampled_from(["*", "?", "1", "7", "mon-fri", "fri-mon", "0-6", "L5", "5#5", "2#1,2#3", "*/2"])
MONTHS = st.sampled_from(["*", "2", "*/5", "jan,jun", "nov-feb"])
TIMES = st.sampled_from(["* *", "30 2", "*/7 */5", "0-10 22-2", "59 23"])
SECONDS = st.sampled_from(["", "30", "*/20", "59"])


@given(TIMES, DAYS, MONTHS, WEEK_DAYS, SECONDS, st.booleans(), st.datetimes(datetime(1970, 2, 1), datetime(2099, 1, 1)))
def test_local_times_are_those_of_croniter(
    time: str, day: str, month: str, week_day: str, second: str, day_or: bool, start: datetime
) -> None:
    text = f"{time} {day} {month} {week_day} {second}".strip()
    whole = start.replace(microsecond=0)
    try:
        following = croniter(text, whole, day_or=day_or).get_next(datetime)
        before = croniter(text, whole, day_or=day_or).get_prev(datetime)
    except CroniterBadDateError:
        assume(False)

    times = cron_expression(text, day_or).times

    assert times.after(start) == following
    assert times.at_or_before(whole - timedelta(seconds=1)) == before


def test_seconds_are_looked_for_between_two_of_them() -> None:
    times = cron_expression("* * * * * */20", True).times

    assert times.after(datetime(2026, 1, 1, 0, 0, 19, 5)) == datetime(2026, 1, 1, 0, 0, 20)
    assert times.at_or_after(datetime(2026, 1, 1, 0, 0, 20, 5)) == datetime(2026, 1, 1, 0, 0, 40)
    assert times.at_or_before(datetime(2026, 1, 1, 0, 0, 20, 5)) == datetime(2026, 1, 1, 0, 0, 20)
    assert Cron("* * * * * */20").first(datetime(2026, 1, 1, 0, 0, 19, 5, tzinfo=UTC)) is not None
