"""Cron jobs: which expressions there are, what they fire, and how a change of the clock shows in it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.recurrence import Cron, Tick

BERLIN = "Europe/Berlin"


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc]


def ticks(cron: Cron, after: datetime, count: int) -> list[Tick]:
    def walk():  # type: ignore[no-untyped-def]
        tick = cron.first(after)
        while tick is not None:
            yield tick
            tick = cron.following(tick)

    return list(islice(walk(), count))


def nominals(cron: Cron, after: datetime, count: int) -> list[str]:
    return [tick.nominal for tick in ticks(cron, after, count)]


def test_a_fixed_time_is_named_by_local_time_and_a_rhythm_has_its_offset() -> None:
    assert nominals(Cron("30 2 * * *", BERLIN), utc(2026, 7, 1), 1) == ["2026-07-01T02:30:00"]
    assert nominals(Cron("*/15 * * * *", BERLIN), utc(2026, 7, 1), 1) == ["2026-07-01T02:15:00+02:00"]


def test_instants_are_utc() -> None:
    [fixed] = ticks(Cron("30 2 * * *", BERLIN), utc(2026, 7, 1), 1)
    rhythm = ticks(Cron("*/15 * * * *", BERLIN), utc(2026, 7, 1), 3)

    assert fixed.at == utc(2026, 7, 1, 0, 30)
    assert [tick.at for tick in rhythm] == [utc(2026, 7, 1, 0, minute) for minute in (15, 30, 45)]
    assert {tick.at.tzinfo for tick in (fixed, *rhythm)} == {UTC}


def test_a_skipped_fixed_time_fires_at_the_end_of_the_gap() -> None:
    tick = ticks(Cron("30 2 * * *", BERLIN), utc(2026, 3, 28, 12), 2)

    assert tick[0] == Tick("2026-03-29T02:30:00", utc(2026, 3, 29, 1))
    assert tick[1] == Tick("2026-03-30T02:30:00", utc(2026, 3, 30, 0, 30))


def test_fixed_times_in_one_gap_share_an_instant_and_all_of_them_come() -> None:
    cron = Cron("0,30 2,3 * * *", BERLIN)

    found = ticks(cron, utc(2026, 3, 28, 12), 4)

    assert [tick.nominal[11:16] for tick in found] == ["02:00", "02:30", "03:00", "03:30"]
    assert [tick.at for tick in found] == [utc(2026, 3, 29, 1)] * 3 + [utc(2026, 3, 29, 1, 30)]
    assert cron.latest(utc(2026, 3, 29, 1)) == found[2]
    assert cron.first(utc(2026, 3, 29, 1)) == found[3]


@pytest.mark.parametrize("asked_at", [utc(2026, 10, 25, 0, 30), utc(2026, 10, 25, 1, 10), utc(2026, 10, 25, 1, 30)])
def test_a_repeated_fixed_time_fires_once_wherever_it_is_asked_for(asked_at: datetime) -> None:
    cron = Cron("30 2 * * *", BERLIN)

    assert cron.latest(asked_at) == Tick("2026-10-25T02:30:00", utc(2026, 10, 25, 0, 30))
    assert cron.first(asked_at) == Tick("2026-10-26T02:30:00", utc(2026, 10, 26, 1, 30))


def test_a_rhythm_leaves_out_skipped_times() -> None:
    assert nominals(Cron("*/30 1-3 * * *", BERLIN), utc(2026, 3, 29), 4) == [
        "2026-03-29T01:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-29T03:30:00+02:00",
        "2026-03-30T01:00:00+02:00",
    ]


def test_a_rhythm_fires_in_both_passes_through_a_repeated_hour() -> None:
    assert nominals(Cron("*/30 * * * *", BERLIN), utc(2026, 10, 24, 23, 59), 5) == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]


def test_a_day_that_samoa_skipped_still_has_its_fixed_tick() -> None:
    assert ticks(Cron("0 9 30 12 *", "Pacific/Apia"), utc(2011, 6, 1), 1) == [
        Tick("2011-12-30T09:00:00", utc(2011, 12, 30, 10))
    ]


@pytest.mark.parametrize(
    ("expression", "is_fixed"),
    [
        ("30 2 * * *", True),
        ("0,30 2,4 * * mon-fri", True),
        ("0-10 2-4 */2 * *", True),
        ("@daily", True),
        ("@weekly", True),
        ("30 2 * * * 15", True),
        ("30 * * * *", False),
        ("*/5 2 * * *", False),
        ("5-55/10 2 * * *", False),
        ("5/10 2 * * *", False),
        ("0 */2 * * *", False),
        ("0 0-23 * * *", False),
        ("30 2 * * * *", False),
        ("30 2 * * * */10", False),
        ("@hourly", False),
    ],
)
def test_a_job_is_at_fixed_times_if_no_field_of_the_time_is_a_star_or_a_step(expression: str, is_fixed: bool) -> None:
    assert Cron(expression).is_fixed is is_fixed


def test_seconds_come_sixth() -> None:
    assert nominals(Cron("59 23 31 12 * 0-59/30"), utc(2026, 1, 1), 2) == [
        "2026-12-31T23:59:00+00:00",
        "2026-12-31T23:59:30+00:00",
    ]


@pytest.mark.parametrize(
    ("step", "single"),
    [
        ("59/15 * * * *", "59 * * * *"),
        ("0 23/6 * * *", "0 23 * * *"),
        ("5,59/015 1,23/2 * * *", "5,59 1,23 * * *"),
        ("0 0 31/2 * *", "0 0 31 * *"),
        ("0 0 1 12/3 *", "0 0 1 12 *"),
        ("0 0 1 DEC/3 *", "0 0 1 12 *"),
        ("0 0 * * 6/1", "0 0 * * 6"),
        ("0 0 * * sat/1", "0 0 * * 6"),
        ("0 0 1 1 * 59/10", "0 0 1 1 * 59"),
    ],
)
def test_a_step_from_the_last_value_is_that_value_to_every_release_of_croniter(step: str, single: str) -> None:
    instants = [[tick.at for tick in ticks(Cron(text), utc(2026, 1, 1), 20)] for text in (step, single)]

    assert instants[0] == instants[1]


def test_a_step_from_the_last_value_is_still_a_step() -> None:
    assert not Cron("59/15 2 * * *").is_fixed


def test_days_are_either_or_both() -> None:
    assert nominals(Cron("0 0 13 * fri"), utc(2026, 1, 1), 2) == ["2026-01-02T00:00:00", "2026-01-09T00:00:00"]
    assert nominals(Cron("0 0 13 * fri", day_or=False), utc(2026, 1, 1), 2) == [
        "2026-02-13T00:00:00",
        "2026-03-13T00:00:00",
    ]


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("", "it has 0 fields; expected 5 .* or 6 with the second last"),
        ("* * * *", "it has 4 fields; expected 5"),
        ("* * * * * * 2030", "it has 7 fields; expected 5"),
        ("60 * * * *", "'60' is no minute; expected 0-59"),
        ("0 24 * * *", "'24' is no hour; expected 0-23"),
        ("0 0 32 * *", "'32' is no day of month; expected 1-31"),
        ("0 0 * 13 *", "'13' is no month; expected 1-12"),
        ("0 0 * * 8", "'8' is no day of week; expected 0-7, sun-sat"),
        ("0 0 * * funday", "'funday' is no day of week"),
        ("0 0 * * * 61", "'61' is no second; expected 0-59"),
        ("*/0 * * * *", "'[*]/0' is no minute"),
        ("-5 * * * *", "'-5' is no minute"),
        ("? * * * *", "'[?]' is no minute"),
        ("0 0 * * mon,fri#2", "'mon,fri#2' is no day of week"),
        ("@reboot", "there is no such name; expected one of @yearly"),
        ("H * * * *", "H and R name no certain time"),
        ("R(0-9) * * * *", "H and R name no certain time"),
        ("0 5-5 * * *", "'5-5' is 5 to some and the whole field to others; expected 5 or [*]"),
        ("0 1,05-5/2 * * *", "'05-5' is 5 to some"),
        ("0 0 * Jan-jan *", "'Jan-jan' is Jan to some"),
        ("٣ * * * *", "characters other than ASCII"),
        ("0 0 30 2 *", "no day is ever as it says; expected a day that exists"),
        ("0 0 31 2,4,6,9,11 *", "no day is ever as it says"),
    ],
)
def test_an_expression_that_cannot_be_is_refused_in_one_sentence(expression: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^cron expression .*: .*{wrong}") as refused:
        Cron(expression).check()

    assert repr(expression) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_times_that_a_zone_always_skips_are_refused() -> None:
    cron = Cron("*/5 2 * 3 L0", BERLIN)

    with pytest.raises(ConfigurationError, match="Europe/Berlin always skips the times it names"):
        cron.check()

    assert cron.first(utc(2026, 1, 1)) is None


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no time zone 'Mars/Olympus'"):
        Cron("0 0 * * *", "Mars/Olympus").check()


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="an instant needs a time zone"):
        Cron("0 0 * * *").first(datetime(2026, 1, 1))


@pytest.mark.parametrize("expression", ["0 0 29 2 *", "0 0 29 2 1", "* * 29 2 1"])
def test_a_rare_day_is_found_across_2100(expression: str) -> None:
    cron = Cron(expression, BERLIN, day_or=False)
    cron.check()

    found = ticks(cron, utc(2072, 3, 1), 1)[0]

    assert found.at > utc(2075, 1, 1)
    assert cron.latest(found.at) == found
    assert cron.latest(found.at - timedelta(seconds=1)) != found


@pytest.mark.parametrize("expression", ["* * * * * *", "*/5 * * * *", "30 2 * * *", "0 0 29 2 1", "0 0 1 1 *"])
@pytest.mark.parametrize("zone", ["UTC", BERLIN, "Africa/Casablanca"])
def test_the_latest_tick_is_found_without_walking_there(expression: str, zone: str) -> None:
    cron = Cron(expression, zone, day_or=False)
    cron.check()
    started = time.perf_counter()

    for year in range(2026, 2076):
        assert cron.latest(utc(year, 6, 1, 12, 34, 56)) is not None

    # Half a million steps to the last tick of a year would take seconds each.
    assert (time.perf_counter() - started) / 50 < 0.05


@pytest.mark.parametrize("expression", ["30 2 * * *", "*/5 * * * *"])
def test_at_the_ends_of_time_there_is_nothing(expression: str) -> None:
    cron = Cron(expression, BERLIN)

    assert cron.first(datetime.max.replace(tzinfo=UTC)) is None
    assert cron.latest(datetime.min.replace(tzinfo=UTC)) is None
    assert cron.first(datetime.min.replace(tzinfo=UTC)) is not None
    assert cron.latest(datetime.max.replace(tzinfo=UTC)) is not None


@pytest.mark.parametrize("nominal", ["2026-07-01T02:15:00+02:00", "2026-07-01T02:15:00", "tomorrow", ""])
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/30 * * * *"])
def test_a_name_of_another_kind_goes_on_from_its_instant(expression: str, nominal: str) -> None:
    following = Cron(expression, BERLIN).following(Tick(nominal, utc(2026, 7, 1, 0, 15)))

    assert following is not None
    assert following.at == utc(2026, 7, 1, 0, 30)


def test_it_says_in_words_what_it_is() -> None:
    assert Cron("30 2 * * *", BERLIN).describe() == "cron 30 2 * * * in Europe/Berlin"
    assert (
        Cron("30 2 13 * 5", BERLIN, day_or=False).describe()
        == "cron 30 2 13 * 5 in Europe/Berlin, on days that are both"
    )
