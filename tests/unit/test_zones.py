"""The clock on the wall: when it is changed, how far it has come, and what zones there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.wall_clock import wall_clock
from tests.unit.cron_questions import ALL

SPRING = datetime(2026, 3, 29, 1, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

instants = st.datetimes(datetime(1972, 1, 1), datetime(2037, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))


def test_the_clock_is_changed_where_the_offset_is_another_for_the_first_time() -> None:
    berlin = wall_clock("Europe/Berlin")
    day = timedelta(days=1)

    assert berlin.first_change(SPRING - day, SPRING + day) == SPRING
    assert berlin.first_change(SPRING - day, SPRING - MICROSECOND) is None
    assert berlin.first_change(SPRING, SPRING + day) is None
    assert berlin.last_change(SPRING - day, SPRING + day) == SPRING
    assert berlin.last_change(SPRING - MICROSECOND, SPRING) == SPRING
    assert berlin.last_change(SPRING, SPRING + day) is None


def test_a_skipped_time_is_reached_at_the_end_of_the_gap() -> None:
    berlin = wall_clock("Europe/Berlin")

    assert berlin.reached(datetime(2026, 3, 29, 1, 59, 59)) == SPRING - timedelta(seconds=1)
    assert berlin.reached(datetime(2026, 3, 29, 2, 0)) == SPRING
    assert berlin.reached(datetime(2026, 3, 29, 2, 59, 59)) == SPRING
    assert berlin.reached(datetime(2026, 3, 29, 3, 0)) == SPRING


def test_a_repeated_time_is_reached_once() -> None:
    berlin = wall_clock("Europe/Berlin")

    assert berlin.reached(datetime(2026, 10, 25, 2, 30)) == AUTUMN - timedelta(minutes=30)
    assert berlin.reached(datetime(2026, 10, 25, 3, 0)) == AUTUMN + timedelta(hours=1)


def test_a_clock_that_is_put_back_has_been_further() -> None:
    berlin = wall_clock("Europe/Berlin")
    put_back = datetime(2026, 10, 25, 3) - MICROSECOND

    assert berlin.furthest(AUTUMN - timedelta(minutes=1)) == datetime(2026, 10, 25, 2, 59)
    assert berlin.furthest(AUTUMN) == put_back
    assert berlin.furthest(AUTUMN + timedelta(minutes=59)) == put_back
    assert berlin.furthest(AUTUMN + timedelta(hours=1)) == datetime(2026, 10, 25, 3)


def test_samoa_skipped_a_whole_day() -> None:
    apia = wall_clock("Pacific/Apia")
    jump = datetime(2011, 12, 30, 10, tzinfo=UTC)

    assert apia.first_change(jump - timedelta(days=2), jump + timedelta(days=2)) == jump
    assert apia.reached(datetime(2011, 12, 30, 17, 45)) == jump


@pytest.mark.parametrize(
    ("zone", "near"),
    [
        ("Europe/Berln", "did you mean Europe/Berlin"),
        ("berlin", "did you mean Europe/Berlin?"),
        ("europe/new york", "America/New_York"),
        ("America/New York", "did you mean America/New_York"),
    ],
)
def test_an_unknown_zone_is_named_with_those_like_it(zone: str, near: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^there is no time zone '{zone}' .*{near.replace('?', '[?]')}"):
        wall_clock(zone)


@pytest.mark.parametrize("zone", ["", "Europe", "/etc/passwd", "../UTC", "Nowhere at all", "Europe/\0", "ü", "x" * 300])
def test_what_is_no_name_of_a_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^there is no time zone .*; expected an IANA name$"):
        wall_clock(zone)


@given(zone=st.sampled_from(ALL), instant=instants, later=st.timedeltas(timedelta(0), timedelta(days=3)))
def test_the_furthest_reading_never_goes_back(zone: str, instant: datetime, later: timedelta) -> None:
    clock = wall_clock(zone)

    assert clock.furthest(instant) <= clock.furthest(instant + later)
    assert clock.reading(instant) <= clock.furthest(instant)


@given(zone=st.sampled_from(ALL), reading=st.datetimes(datetime(1972, 1, 1), datetime(2037, 1, 1)))
def test_a_reading_is_reached_when_the_furthest_reading_first_is_so_far(zone: str, reading: datetime) -> None:
    clock = wall_clock(zone)

    reached = clock.reached(reading)

    assert clock.furthest(reached) >= reading
    assert clock.furthest(reached - MICROSECOND) < reading
