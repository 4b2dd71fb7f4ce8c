"""Instants and durations: aware UTC datetimes outside, seconds since the epoch on the wire."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from entitycelery.exceptions import ConfigurationError


def utc_from_epoch(epoch_s: float) -> datetime:
    """The instant `epoch_s` seconds after 1970-01-01T00:00:00Z."""
    return datetime.fromtimestamp(epoch_s, UTC)


def epoch_from(instant: datetime) -> float:
    """Seconds since the epoch of an aware instant.

    Raises:
        ConfigurationError: The instant has no time zone, so it names no moment.
    """
    if instant.tzinfo is None:
        raise ConfigurationError(f"an instant needs a time zone, got the naive datetime {instant.isoformat()}")
    return instant.timestamp()


def seconds(duration: float | timedelta) -> float:
    """A duration in seconds, from a number of seconds or a timedelta."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


class Deadline:
    """A moment of the local monotonic clock, `after_s` from now; None never comes."""

    __slots__ = ("_at",)

    def __init__(self, after_s: float | None) -> None:
        self._at = None if after_s is None else time.monotonic() + after_s

    def left_s(self) -> float:
        """Seconds until the deadline, never negative; infinity when there is none."""
        return float("inf") if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at
