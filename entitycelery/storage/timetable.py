"""The part of the store that keeps schedules. Every method may raise StoreUnavailable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from entitycelery.message import NewMessage
from entitycelery.stored_schedule import Move, Moved, NewSchedule, NextTick, StoredSchedule


class Timetable(Protocol):
    """The schedules of one cluster, and its clock."""

    def now_epoch_s(self) -> float:
        """The store's present moment."""

    def put(self, schedules: Sequence[NewSchedule]) -> int:
        """Store schedules in the place of earlier ones of these names, which go on with their next tick if their
        generation is the same; how many are new or not as they were."""

    def due(self, limit: int) -> tuple[float, list[StoredSchedule]]:
        """The present moment, and schedules that a scheduler is to look at by then, the longest due first."""

    def first_look_s(self) -> float | None:
        """In how many seconds a scheduler is to look next; None: never, as it stands."""

    def move(self, moves: Sequence[Move]) -> Moved:
        """Fire ticks and move their schedules on, all in one transaction; those that somebody else moved are left."""

    def all(self) -> Iterator[StoredSchedule]:
        """All schedules, in order of name, read some at a time."""

    def one(self, name: str) -> StoredSchedule | None:
        """The schedule of a name."""

    def pause(self, name: str) -> bool:
        """Have a schedule fire no more; whether there is one."""

    def resume(self, schedule: StoredSchedule, following: NextTick | None) -> bool:
        """Have a paused schedule fire again, from `following` on; whether it was paused and is as it was read."""

    def remove(self, name: str) -> bool:
        """Forget a schedule; whether there was one."""

    def trigger(self, name: str, message: NewMessage) -> None:
        """Store a message beside the schedule's ticks."""
