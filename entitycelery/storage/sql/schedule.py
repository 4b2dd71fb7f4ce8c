"""The table `schedule`: what fires when, and the transaction in which a tick fires.

A tick is a message with a key, stored in the transaction that moves the row on from that very tick: of two schedulers
one finds the row moved, and a tick that was stored already is stored no second time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.message import AppendOutcome, NewMessage
from entitycelery.storage.sql.change import Changes
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.statement import Row, fetch, run, transaction
from entitycelery.stored_schedule import Move, Moved, NewSchedule, NextTick, StoredSchedule

_TICK = {"tick": "text", "tick_at": "float", "look_at": "float"}


class Schedules:
    """Statements of schedules. Due ones are found by the index schedule_look, all else relies on the primary key."""

    def __init__(self, dialect: Dialect, messages: Messages, changes: Changes) -> None:
        self._dialect = dialect
        self._messages = messages
        self._changes = changes
        self._word_reads(dialect)
        self._word_writes(dialect)

    def _word_reads(self, dialect: Dialect) -> None:
        epochs = {name: dialect.to_epoch(name) for name in ("tick_at", "look_at", "last_fired_at")}
        shown = (
            f"SELECT name, {dialect.json_text('definition')}, generation, origin, paused, tick, {epochs['tick_at']}, "
            f"{epochs['look_at']}, last_tick, {epochs['last_fired_at']}, last_message_id, fired, skipped, failure "
            "FROM {schedule} "
        )
        self._now = dialect.sql(f"SELECT {dialect.to_epoch(dialect.now)}")
        self._due = dialect.sql(
            f"{shown} WHERE NOT paused AND look_at <= {dialect.now_once} ORDER BY look_at LIMIT :limit"
        )
        self._first_look = dialect.sql(
            f"SELECT {epochs['look_at']} - {dialect.to_epoch(dialect.now)} FROM {{schedule}} "
            "WHERE NOT paused AND look_at IS NOT NULL ORDER BY look_at LIMIT 1"
        )
        self._page = dialect.sql(f"{shown} WHERE name > :after ORDER BY name LIMIT :limit")
        self._one = dialect.sql(f"{shown} WHERE name = :name")
        self._lock = dialect.sql(
            "SELECT name, generation, tick, last_message_id FROM {schedule} WHERE {among} AND NOT paused "
            f"ORDER BY name {dialect.for_update}",
            among=dialect.any_of("name", "names"),
        )

    def _word_writes(self, dialect: Dialect) -> None:
        instants = f"{dialect.from_epoch('r.tick_at')}, {dialect.from_epoch('r.look_at')}"
        texts = {"name": "text", "definition": "text", "generation": "text", "origin": "text", "paused": "bool"}
        # A schedule whose ticks are the same as before goes on with the next of them.
        self._put = dialect.sql(
            "INSERT INTO {schedule} (name, definition, generation, origin, paused, tick, tick_at, look_at, created_at) "
            f"SELECT r.name, {dialect.json('r.definition')}, r.generation, r.origin, r.paused, r.tick, {instants}, "
            f"{dialect.now} FROM {{rows}} WHERE true ORDER BY r.name "
            "ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, origin = excluded.origin, "
            f"{self._unless_the_same('tick')}, {self._unless_the_same('tick_at')}, {self._unless_the_same('look_at')}, "
            "generation = excluded.generation, failure = NULL "
            "WHERE schedule.generation <> excluded.generation OR schedule.definition <> excluded.definition "
            "OR schedule.origin <> excluded.origin",
            rows=dialect.rowset("rows", **texts, **_TICK),
        )
        self._move = dialect.sql(
            f"UPDATE {{schedule}} SET tick = r.tick, tick_at = {dialect.from_epoch('r.tick_at')}, "
            f"look_at = {dialect.from_epoch('r.look_at')}, last_tick = coalesce(r.last_tick, schedule.last_tick), "
            f"last_fired_at = CASE WHEN r.fired > 0 THEN {dialect.now} ELSE last_fired_at END, "
            "last_message_id = coalesce(r.message_id, last_message_id), fired = schedule.fired + r.fired, "
            "skipped = schedule.skipped + r.skipped, failure = r.failure "
            "FROM {rows} WHERE {among} AND schedule.name = r.name",
            among=dialect.any_of("schedule.name", "ids"),
            rows=dialect.rowset(
                "rows",
                name="text",
                last_tick="text",
                message_id="text",
                fired="int",
                skipped="int",
                failure="text",
                **_TICK,
            ),
        )
        self._pause = dialect.sql("UPDATE {schedule} SET paused = true WHERE name = :name")
        self._resume = dialect.sql(
            "UPDATE {schedule} SET paused = false, tick = r.tick, "
            f"tick_at = {dialect.from_epoch('r.tick_at')}, look_at = {dialect.from_epoch('r.look_at')} "
            "FROM {rows} WHERE schedule.name = r.name AND paused AND schedule.generation = r.generation",
            rows=dialect.rowset("rows", name="text", generation="text", **_TICK),
        )
        self._remove = dialect.sql("DELETE FROM {schedule} WHERE name = :name")
        self._triggered = dialect.sql("UPDATE {schedule} SET last_message_id = :message_id WHERE name = :name")

    @staticmethod
    def _unless_the_same(column: str) -> str:
        same = "schedule.generation = excluded.generation"
        return f"{column} = CASE WHEN {same} THEN schedule.{column} ELSE excluded.{column} END"

    def now_epoch_s(self, conn: Connection) -> float:
        """The database's present moment."""
        return float(fetch(conn, self._now)[0][0])

    def put(self, conn: Connection, schedules: Sequence[NewSchedule]) -> int:
        """Store schedules, in the place of earlier ones of these names; how many are new or not as they were."""
        rows = [
            {
                "name": one.name,
                "definition": one.definition,
                "generation": one.generation,
                "origin": one.origin,
                "paused": one.paused,
                **_tick_row(one.next),
            }
            for one in schedules
        ]
        return run(conn, self._put, {"rows": self._dialect.rows(rows)}) if rows else 0

    def due(self, conn: Connection, limit: int) -> list[StoredSchedule]:
        """Schedules that a scheduler is to look at now, the longest due first."""
        return [_stored(row) for row in fetch(conn, self._due, {"limit": limit})]

    def first_look_s(self, conn: Connection) -> float | None:
        """In how many seconds a scheduler is to look next; None: never, as it stands."""
        rows = fetch(conn, self._first_look)
        return max(0.0, float(rows[0][0])) if rows else None

    def page(self, conn: Connection, after: str, limit: int) -> list[StoredSchedule]:
        """Schedules in order of name, from behind a name."""
        return [_stored(row) for row in fetch(conn, self._page, {"after": after, "limit": limit})]

    def one(self, conn: Connection, name: str) -> StoredSchedule | None:
        """The schedule of a name."""
        rows = fetch(conn, self._one, {"name": name})
        return _stored(rows[0]) if rows else None

    def move(self, conn: Connection, moves: Sequence[Move]) -> Moved:
        """Fire ticks and move their schedules on, all in one transaction; those that somebody else moved are left."""
        with transaction(conn, self._dialect.begin):
            names = [move.name for move in moves]
            locked = {row[0]: row[1:] for row in fetch(conn, self._lock, {"names": self._dialect.values(names)})}
            won = [move for move in moves if tuple(locked.get(move.name, ()))[:2] == (move.generation, move.before)]
            kept = {move.name: self._kept(conn, move, locked[move.name][2]) for move in won}
            rows = [_moved_row(move, kept[move.name]) for move in won]
            if rows:
                run(conn, self._move, self._dialect.keyed_rows(rows, "name"))
            messages = [message for move in won for message in kept[move.name]]
            if messages:
                # A tick that is known already, whatever it said then, has fired.
                outcomes = self._messages.append(conn, messages, os.urandom(8).hex())
                stored = {
                    m.id for m, outcome in zip(messages, outcomes, strict=True) if outcome is AppendOutcome.STORED
                }
                kept = {name: [m for m in ticks if m.id in stored] for name, ticks in kept.items()}
        return Moved(kept)

    def _kept(self, conn: Connection, move: Move, last_message_id: str | None) -> list[NewMessage]:
        """The messages that the schedule's rule for overlaps leaves."""
        messages = list(move.messages)
        if move.overlap == "queue" or not messages:
            return messages
        if move.overlap == "skip":
            return [] if last_message_id and self._messages.pending_ids(conn, [last_message_id]) else messages[:1]
        if last_message_id:
            self._changes.cancel_within(conn, last_message_id)
        return messages[-1:]

    def pause(self, conn: Connection, name: str) -> bool:
        """Have a schedule fire no more; whether there is one."""
        return run(conn, self._pause, {"name": name}) > 0

    def resume(self, conn: Connection, schedule: StoredSchedule, following: NextTick | None) -> bool:
        """Have a paused schedule fire again, from `following` on; whether it was paused and is as it was read."""
        row = {"name": schedule.name, "generation": schedule.generation, **_tick_row(following)}
        return run(conn, self._resume, {"rows": self._dialect.rows([row])}) > 0

    def remove(self, conn: Connection, name: str) -> bool:
        """Forget a schedule; whether there was one."""
        return run(conn, self._remove, {"name": name}) > 0

    def trigger(self, conn: Connection, name: str, message: NewMessage) -> None:
        """Store a message beside the schedule's ticks."""
        with transaction(conn, self._dialect.begin):
            run(conn, self._triggered, {"name": name, "message_id": message.id})
            self._messages.append(conn, [message], os.urandom(8).hex())


def _tick_row(tick: NextTick | None) -> dict[str, Any]:
    if tick is None:
        return {"tick": None, "tick_at": None, "look_at": None}
    return {"tick": tick.nominal, "tick_at": tick.at_epoch_s, "look_at": tick.look_at_epoch_s}


def _moved_row(move: Move, kept: Sequence[NewMessage]) -> dict[str, Any]:
    return {
        "name": move.name,
        "last_tick": move.last_tick if kept else None,
        "message_id": kept[-1].id if kept else None,
        "fired": len(kept),
        "skipped": move.skipped + len(move.messages) - len(kept),
        "failure": move.failure,
        **_tick_row(move.next),
    }


def _stored(row: Row) -> StoredSchedule:
    name, definition, generation, origin, paused, *rest = row
    return StoredSchedule(name, definition, generation, origin, bool(paused), *rest)
