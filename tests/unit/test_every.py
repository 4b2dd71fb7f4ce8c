"""Intervals: exact for ever, and as fast after years as after seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.recurrence import Every, Once, Tick

ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

instants = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))
intervals = st.one_of(st.integers(1, 10**7), st.floats(1, 10**7)).map(float)


def test_the_anchor_is_the_first_tick_and_the_grid_begins_there() -> None:
    every = Every(90, ANCHOR)

    assert every.first(ANCHOR - timedelta(days=365)) == Tick("2026-01-01T00:00:00+00:00", ANCHOR)
    assert every.first(ANCHOR) == Tick("2026-01-01T00:01:30+00:00", ANCHOR + timedelta(seconds=90))
    assert every.latest(ANCHOR - MICROSECOND) is None
    assert every.latest(ANCHOR) == Tick("2026-01-01T00:00:00+00:00", ANCHOR)


def test_a_tenth_of_a_second_is_still_one_after_a_hundred_years() -> None:
    every = Every(1.1, ANCHOR)
    count = 10**9

    tick = every.latest(ANCHOR + timedelta(seconds=1_100_000_000))

    assert tick is not None
    assert tick.at - ANCHOR == timedelta(microseconds=count * 1_100_000)


@given(intervals, instants, instants)
def test_ticks_are_whole_intervals_from_the_anchor(every_s: float, anchor: datetime, instant: datetime) -> None:
    every = Every(every_s, anchor)

    first, latest = every.first(instant), every.latest(instant)

    assert first is not None
    assert first.at > instant
    assert (first.at - anchor) % every.interval == timedelta(0)
    assert (latest is None) is (instant < anchor)
    if latest is not None:
        assert latest.at <= instant
        assert first.at - latest.at == every.interval
        assert every.following(latest) == first
        assert abs(Fraction(every_s) - Fraction(every.interval // MICROSECOND, 10**6)) <= Fraction(1, 2 * 10**6)


@given(st.integers(1, 100_000), instants, st.timedeltas(timedelta(0), timedelta(days=1)))
def test_ticks_between_are_counted_and_not_walked(every_s: int, start: datetime, length: timedelta) -> None:
    every = Every(every_s * 60, ANCHOR)
    walked, tick = 0, every.first(start - MICROSECOND)

    while tick is not None and tick.at < start + length:
        walked += 1
        tick = every.following(tick)

    assert every.between(start, start + length) == walked


def test_a_tick_off_the_grid_is_followed_by_one_on_it() -> None:
    every = Every(60, ANCHOR)
    off = ANCHOR + timedelta(seconds=61)

    assert every.following(Tick(off.isoformat(), off)) == every.first(off)


def test_a_name_in_another_zone_is_the_same_instant() -> None:
    assert Every(60, ANCHOR).following(Tick("2026-01-01T01:00:00+01:00", ANCHOR)) == Every(60, ANCHOR).first(ANCHOR)


def test_there_is_nothing_after_the_year_9999() -> None:
    assert Every(86_400, ANCHOR).first(datetime.max.replace(tzinfo=UTC)) is None
    assert Every(86_400, ANCHOR).latest(datetime.min.replace(tzinfo=UTC)) is None


@pytest.mark.parametrize("every_s", [0, 0.999, -1, float("nan"), float("inf"), 1e300])
def test_what_is_no_interval_is_refused(every_s: float) -> None:
    with pytest.raises(ConfigurationError, match=r"^every_s must be from 1 to 3155760000, got"):
        Every(every_s, ANCHOR).check()


def test_an_anchor_needs_a_time_zone() -> None:
    with pytest.raises(ConfigurationError, match="an instant needs a time zone"):
        Every(60, datetime(2026, 1, 1)).check()


def test_a_single_tick_comes_once() -> None:
    once = Once(ANCHOR)
    tick = Tick("2026-01-01T00:00:00+00:00", ANCHOR)

    assert once.first(ANCHOR - MICROSECOND) == tick
    assert once.first(ANCHOR) is None
    assert once.following(tick) is None
    assert once.latest(ANCHOR - MICROSECOND) is None
    assert once.latest(ANCHOR) == tick


def test_a_single_tick_needs_a_time_zone() -> None:
    with pytest.raises(ConfigurationError, match="an instant needs a time zone"):
        Once(datetime(2026, 1, 1)).check()


def test_they_say_in_words_what_they_are() -> None:
    berlin = timezone(timedelta(hours=1))

    assert Every(90, ANCHOR).describe() == "every 90 s from 2026-01-01T00:00:00+00:00"
    assert Once(datetime(2026, 1, 1, 1, tzinfo=berlin)).describe() == "once at 2026-01-01T00:00:00+00:00"
