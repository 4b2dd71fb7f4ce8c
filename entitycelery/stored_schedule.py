"""Schedules as they are stored, and how a scheduler moves them on. What they mean is said in `scheduler`."""

from __future__ import annotations

from typing import Literal

import msgspec

from entitycelery.message import NewMessage

Origin = Literal["code", "api", "beat"]
Overlap = Literal["queue", "skip", "cancel_running"]


class NextTick(msgspec.Struct, frozen=True):
    """The tick that a schedule fires next, when that is due, and when a scheduler is to look."""

    nominal: str
    at_epoch_s: float
    look_at_epoch_s: float


class NewSchedule(msgspec.Struct, frozen=True):
    """A schedule about to be stored: `definition` is JSON, `generation` a hash of what makes its ticks what they are.

    `next` None: it never fires.
    """

    name: str
    definition: str
    generation: str
    origin: Origin
    next: NextTick | None
    paused: bool = False


class StoredSchedule(msgspec.Struct, frozen=True):
    """A row of the table `schedule`."""

    name: str
    definition: str
    generation: str
    origin: str
    paused: bool
    tick: str | None
    tick_at_epoch_s: float | None
    look_at_epoch_s: float | None
    last_tick: str | None
    last_fired_at_epoch_s: float | None
    last_message_id: str | None
    fired: int
    skipped: int
    failure: str | None


class Move(msgspec.Struct, frozen=True):
    """What a scheduler does about one schedule: its ticks fire and its row moves on, in one transaction, if the row
    still has the `generation` and the tick `before`. `failure` says why it could do nothing."""

    name: str
    generation: str
    before: str | None
    next: NextTick | None
    messages: tuple[NewMessage, ...] = ()
    last_tick: str | None = None
    skipped: int = 0
    overlap: Overlap = "queue"
    failure: str | None = None


class Moved(msgspec.Struct, frozen=True):
    """What became of the moves: the messages that were stored for them, by the name of the schedule."""

    messages: dict[str, list[NewMessage]]
