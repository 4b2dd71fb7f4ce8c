"""One firing of a schedule, and the instants it is measured by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from entitycelery.exceptions import ConfigurationError

MICROSECOND = timedelta(microseconds=1)


class Tick(msgspec.Struct, frozen=True):
    """One firing: `nominal` names it, and is a part of its key; `at` is the UTC instant when it is due.

    Fixed-time cron jobs are named by local time (`2026-03-29T02:30:00`), other cron jobs by local time with its offset
    (`2026-10-25T02:15:00+02:00`), everything else by UTC.
    """

    nominal: str
    at: datetime


def utc_tick(at: datetime) -> Tick:
    """The tick that is named by its instant in UTC."""
    instant = as_utc(at)
    return Tick(instant.isoformat(), instant)


def as_utc(instant: datetime) -> datetime:
    """The same instant in UTC.

    Raises:
        ConfigurationError: The instant has no time zone, so it names no moment.
    """
    if instant.tzinfo is None:
        raise ConfigurationError(f"an instant needs a time zone, got the naive datetime {instant.isoformat()}")
    return instant.astimezone(UTC)


def instant_of(tick: Tick) -> datetime:
    """The instant in UTC that a tick's name says, or where it says none, the one when the tick is due."""
    named = _named(tick)
    return as_utc(tick.at if named is None or named.tzinfo is None else named)


def reading_of(tick: Tick) -> datetime | None:
    """The naive local time that a tick's name says; None where it says none."""
    named = _named(tick)
    return None if named is None or named.tzinfo is not None else named


def _named(tick: Tick) -> datetime | None:
    try:
        return datetime.fromisoformat(tick.nominal)
    except ValueError:
        return None  # stored by hand, or by another kind of recurrence
