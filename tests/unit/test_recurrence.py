"""Recurrences as they are stored: how they are written never changes, and what is no recurrence is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.recurrence import Cron, Every, Once, Recurrence, Solar, Tick, decode, encode, has

INSTANT = datetime(2026, 1, 1, 12, tzinfo=UTC)
BERLIN = timezone(timedelta(hours=1))

WRITTEN = {
    b'{"day_or":true,"expression":"*/5 * * * *","kind":"cron","timezone":"UTC"}': Cron("*/5 * * * *"),
    b'{"day_or":false,"expression":"0 3 * * *","kind":"cron","timezone":"Europe/Berlin"}': Cron(
        "0 3 * * *", "Europe/Berlin", day_or=False
    ),
    b'{"anchor":"2026-01-01T12:00:00Z","every_s":90.0,"kind":"every"}': Every(90, INSTANT),
    b'{"at":"2026-01-01T12:00:00Z","kind":"once"}': Once(INSTANT),
    b'{"event":"sunset","kind":"solar","lat":52.0,"lon":13.5}': Solar("sunset", 52, 13.5),
}


@pytest.mark.parametrize(("data", "recurrence"), WRITTEN.items(), ids=lambda value: type(value).__name__)
def test_stored_recurrences_are_read_and_written_alike_for_ever(data: bytes, recurrence: Recurrence) -> None:
    assert encode(recurrence) == data
    assert decode(data) == recurrence
    assert decode(data.decode()) == recurrence


def test_equal_recurrences_are_written_alike() -> None:
    local = INSTANT.astimezone(BERLIN)

    assert encode(Every(90, INSTANT)) == encode(Every(90.0, local))
    assert encode(Once(INSTANT)) == encode(Once(local))
    assert encode(Solar("sunset", 52, 13)) == encode(Solar("sunset", 52.0, 13.0))


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"null", b'{"kind":"lunar"}', b'{"kind":"cron"}', b'{"kind":"once","at":1}', b"\xff", b"[" * 9999],
)
def test_what_is_no_recurrence_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"^this is no recurrence: "):
        decode(data)


@pytest.mark.parametrize(
    ("recurrence", "tick", "there"),
    [
        (Cron("59/15 * * * *"), Tick("2026-01-01T12:59:00+00:00", INSTANT + timedelta(minutes=59)), True),
        # What croniter 5 and 6 make of it.
        (Cron("59/15 * * * *"), Tick("2026-01-01T12:15:00+00:00", INSTANT + timedelta(minutes=15)), False),
        (Cron("0 12 * * *"), Tick("2026-01-01T12:00:00", INSTANT), True),
        (Cron("0 12 * * *"), Tick("2026-01-01T12:00:00+00:00", INSTANT), False),
        (Every(60, INSTANT), Tick("2026-01-01T12:01:00+00:00", INSTANT + timedelta(minutes=1)), True),
        (Every(60, INSTANT), Tick("2026-01-01T12:00:30+00:00", INSTANT + timedelta(seconds=30)), False),
        (Once(INSTANT), Tick("2026-01-01T12:00:00+00:00", INSTANT), True),
    ],
)
def test_a_stored_tick_is_looked_for_in_the_recurrence(recurrence: Recurrence, tick: Tick, there: bool) -> None:
    assert has(recurrence, tick) is there


@pytest.mark.parametrize("nominal", ["2026-03-29T02:00:00", "2026-03-29T02:30:00", "2026-03-29T03:00:00"])
def test_every_tick_of_one_instant_is_found(nominal: str) -> None:
    cron = Cron("0,30 2,3 * * *", "Europe/Berlin")

    assert has(cron, Tick(nominal, datetime(2026, 3, 29, 1, tzinfo=UTC)))
