"""Solar schedules: the same tick has the same name wherever it is looked for, and Celery's are the same moments."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from celery.schedules import solar
from hypothesis import given, settings
from hypothesis import strategies as st

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.recurrence import Solar, Tick
from entitycelery.scheduler.solar import HORIZONS

BERLIN = (52.52, 13.4)
TROMSO = (69.65, 18.96)
SUVA = (-18.14, 178.44)
START = datetime(2026, 6, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("event", "local"),
    [
        # As almanacs have them, to the minute, in UTC.
        ("sunrise", "2026-06-21 02:43"),
        ("solar_noon", "2026-06-21 11:08"),
        ("sunset", "2026-06-21 19:33"),
    ],
)
def test_the_sun_over_berlin_on_the_longest_day(event: str, local: str) -> None:
    tick = Solar(event, *BERLIN).first(datetime(2026, 6, 21, tzinfo=UTC))

    assert tick is not None
    assert abs(tick.at - datetime.fromisoformat(local).replace(tzinfo=UTC)) <= timedelta(minutes=1)
    assert tick.nominal == tick.at.isoformat()


@settings(max_examples=30)
@given(
    event=st.sampled_from(sorted(HORIZONS)),
    place=st.tuples(st.floats(-89, 89), st.floats(-180, 180)),
    day=st.integers(0, 9_000),
    seed=st.integers(0, 2**32),
)
def test_a_tick_is_the_same_from_wherever_it_is_looked_for(
    event: str, place: tuple[float, float], day: int, seed: int
) -> None:
    recurrence = Solar(event, *place)
    before = datetime(2010, 1, 1, tzinfo=UTC) + timedelta(days=day)
    tick = recurrence.first(before)
    assert tick is not None

    for _ in range(5):
        earlier = tick.at - (tick.at - before) * Random(seed).random() - SECOND
        assert recurrence.first(max(earlier, before)) == tick
    following = recurrence.following(tick)
    assert following is not None
    assert recurrence.first(tick.at) == following
    assert recurrence.latest(tick.at) == tick
    assert recurrence.latest(following.at - SECOND) == tick


def test_a_tick_that_is_seconds_off_is_followed_by_the_next_day() -> None:
    recurrence = Solar("sunset", *BERLIN)
    tick = recurrence.first(START)
    assert tick is not None

    for seconds in (-5, 5):
        at = tick.at + timedelta(seconds=seconds)
        assert recurrence.following(Tick(at.isoformat(), at)) == recurrence.following(tick)


@pytest.mark.parametrize("event", sorted(HORIZONS))
@pytest.mark.parametrize("place", [BERLIN, TROMSO, SUVA], ids=["Berlin", "Tromso", "Suva"])
def test_celery_has_the_same_moments(event: str, place: tuple[float, float]) -> None:
    ours, celerys = Solar(event, *place), solar(event, *place)
    instant = START

    for _ in range(10):
        tick = ours.first(instant)
        celerys.nowfun = lambda: instant  # noqa: B023 - asked at once
        theirs = instant + celerys.remaining_estimate(instant)
        assert tick is not None
        assert abs(theirs - tick.at) < 2 * SECOND
        instant = max(tick.at, theirs) + timedelta(minutes=10)


def test_a_night_of_months_is_waited_out() -> None:
    sunrise = Solar("sunrise", *TROMSO)

    last = sunrise.latest(datetime(2026, 12, 24, tzinfo=UTC))
    following = sunrise.first(datetime(2026, 12, 24, tzinfo=UTC))

    assert last is not None
    assert following is not None
    assert following.at - last.at > timedelta(days=40)
    assert sunrise.following(last) == following


@pytest.mark.parametrize(
    ("recurrence", "wrong"),
    [
        (Solar("moonrise", 0, 0), "there is no solar event 'moonrise'; expected one of sunrise, sunset"),
        (Solar("sunrise", 91, 0), "no place on earth has latitude 91.0 and longitude 0.0"),
        (Solar("sunrise", 0, -181), "no place on earth"),
        (Solar("sunrise", float("nan"), 0), "no place on earth"),
        (Solar("sunrise", 90, 0), "there is never a sunrise at latitude 90, longitude 0"),
    ],
)
def test_what_is_no_event_of_the_sun_is_refused(recurrence: Solar, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        recurrence.check()


@pytest.mark.parametrize("place", [(0, 180), (0, -180), (89.9, 10), (-89.9, 10)])
def test_odd_places_have_their_sun_too(place: tuple[float, float]) -> None:
    Solar("sunrise", *place).check()


def test_without_ephem_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ephem", None)

    with pytest.raises(ConfigurationError, match=r"need the package ephem.*entitycelery\[solar\]"):
        Solar("sunrise", 1.25, 2.5).check()


def test_it_says_in_words_what_it_is() -> None:
    assert Solar("sunrise", *BERLIN).describe() == "sunrise at latitude 52.52, longitude 13.4"
