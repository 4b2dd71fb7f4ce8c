"""The schedules of the SQL store: see the port for what each method promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from sqlalchemy.engine import Connection

from entitycelery.message import NewMessage
from entitycelery.storage.sql.schedule import Schedules
from entitycelery.stored_schedule import Move, Moved, NewSchedule, NextTick, StoredSchedule

_PAGE = 200


class SqlTimetable:
    """The Timetable of one cluster. `use` lends a connection, and says of its errors what was being done."""

    def __init__(self, use: Callable[[str], AbstractContextManager[Connection]], schedules: Schedules) -> None:
        self._use = use
        self._schedules = schedules

    def now_epoch_s(self) -> float:
        with self._use("reading the clock") as conn:
            return self._schedules.now_epoch_s(conn)

    def put(self, schedules: Sequence[NewSchedule]) -> int:
        with self._use("storing schedules") as conn:
            return self._schedules.put(conn, schedules)

    def due(self, limit: int) -> tuple[float, list[StoredSchedule]]:
        with self._use("looking for due schedules") as conn:
            due = self._schedules.due(conn, limit)
            # Read afterwards: what was due then is due by this moment.
            return self._schedules.now_epoch_s(conn), due

    def first_look_s(self) -> float | None:
        with self._use("looking for the next tick") as conn:
            return self._schedules.first_look_s(conn)

    def move(self, moves: Sequence[Move]) -> Moved:
        with self._use("firing ticks") as conn:
            return self._schedules.move(conn, moves)

    def all(self) -> Iterator[StoredSchedule]:
        after = ""
        while page := self._page(after):
            yield from page
            after = page[-1].name

    def _page(self, after: str) -> list[StoredSchedule]:
        with self._use("reading schedules") as conn:
            return self._schedules.page(conn, after, _PAGE)

    def one(self, name: str) -> StoredSchedule | None:
        with self._use("reading a schedule") as conn:
            return self._schedules.one(conn, name)

    def pause(self, name: str) -> bool:
        with self._use("pausing a schedule") as conn:
            return self._schedules.pause(conn, name)

    def resume(self, schedule: StoredSchedule, following: NextTick | None) -> bool:
        with self._use("resuming a schedule") as conn:
            return self._schedules.resume(conn, schedule, following)

    def remove(self, name: str) -> bool:
        with self._use("removing a schedule") as conn:
            return self._schedules.remove(conn, name)

    def trigger(self, name: str, message: NewMessage) -> None:
        with self._use("triggering a schedule") as conn:
            self._schedules.trigger(conn, name, message)
