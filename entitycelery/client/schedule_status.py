"""A schedule as people see it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from entitycelery.clock import utc_from_epoch
from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.definition import Definition, decode_definition
from entitycelery.stored_schedule import StoredSchedule


class ScheduleStatus(msgspec.Struct, frozen=True):
    """A schedule as people see it.

    Attributes:
        status: `active`, `paused`, `finished` (there is no tick any more) or `failing`, with the reason in `failure`.
        next_at: When the next tick is due, without jitter.
        last_tick: The name of the last tick that fired: its nominal time.
        lag_s: How long the next tick has been due; 0 if it is not.
    """

    name: str
    status: Literal["active", "paused", "finished", "failing"]
    target: str
    when: str
    origin: str
    next_tick: str | None
    next_at: datetime | None
    last_tick: str | None
    last_fired_at: datetime | None
    lag_s: float
    fired: int
    skipped: int
    failure: str | None
    definition: Definition | None


def status_of(stored: StoredSchedule, now_epoch_s: float) -> ScheduleStatus:
    """What a row says, at this moment of the database's."""
    failure, definition = stored.failure, None
    try:
        definition = decode_definition(stored.definition)
    except ConfigurationError as exc:
        failure = failure or str(exc)
    at_epoch_s = stored.tick_at_epoch_s
    status: Literal["active", "paused", "finished", "failing"] = (
        "paused" if stored.paused else "failing" if failure else "active" if stored.tick else "finished"
    )
    due = status == "active" and at_epoch_s is not None
    return ScheduleStatus(
        name=stored.name,
        status=status,
        target=definition.target.describe() if definition else "",
        when=definition.recurrence.describe() if definition else "",
        origin=stored.origin,
        next_tick=stored.tick,
        next_at=None if at_epoch_s is None else utc_from_epoch(at_epoch_s),
        last_tick=stored.last_tick,
        last_fired_at=None if stored.last_fired_at_epoch_s is None else utc_from_epoch(stored.last_fired_at_epoch_s),
        lag_s=max(0.0, now_epoch_s - at_epoch_s) if due and at_epoch_s is not None else 0.0,
        fired=stored.fired,
        skipped=stored.skipped,
        failure=failure,
        definition=definition,
    )
