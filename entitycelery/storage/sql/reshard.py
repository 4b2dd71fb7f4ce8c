"""Another number of shards per group: everything that is hashed with it, in one transaction.

Whoever stores messages is kept out meanwhile, and notices afterwards (see hashing). The shards are computed here, row
by row, since no two databases have the same CRC-32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from entitycelery.address import shard_of
from entitycelery.exceptions import ConfigurationError
from entitycelery.placement import Runner
from entitycelery.reshard_plan import GroupPlan, ReshardPlan
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.runner import Runners
from entitycelery.storage.sql.statement import Statement, fetch, run, transaction

_PAGE = 5_000
_TABLES = ("message", "dead_letter")


class Remains(msgspec.Struct, frozen=True):
    """What the broker may still have of earlier reshards: queues of these groups, numbered below `shards`."""

    shards: int
    groups: tuple[str, ...]


class Reshard:
    """Statements that count and move what is stored, page by page in the order of the primary key."""

    def __init__(
        self, dialect: Dialect, runners: Runners, connect: Callable[[str], AbstractContextManager[Connection]]
    ) -> None:
        self._dialect = dialect
        self._runners = runners
        self._connect = connect
        page = "SELECT id, shard_group, shard, entity_id FROM {table} WHERE id > :after ORDER BY id LIMIT :limit"
        move = "UPDATE {table} SET shard = r.shard FROM {rows} WHERE {name}.id = r.id"
        rows = dialect.rowset("rows", id="text", shard="int")
        tables = {name: dialect.table(name) for name in _TABLES}
        self._page_message, self._page_dead_letter = (dialect.sql(page, table=tables[name]) for name in _TABLES)
        self._move_message, self._move_dead_letter = (
            dialect.sql(move, table=tables[name], name=name, rows=rows) for name in _TABLES
        )
        self._meta = dialect.sql("SELECT value FROM {meta} WHERE name = :name")
        self._set_meta = dialect.sql(
            "INSERT INTO {meta} (name, value) VALUES (:name, :value) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
        self._forget_meta = dialect.sql("DELETE FROM {meta} WHERE name = :name")
        self._drop_leases = dialect.sql("DELETE FROM {lease} WHERE shard >= :shards")
        # The rows of shards that stay keep their epochs, which only grow.
        self._free_leases = dialect.sql("UPDATE {lease} SET holder = NULL, since = NULL, expires_at = NULL")

    def plan(self, number: int, groups: Sequence[str], *, alive_s: float) -> ReshardPlan:
        """What would be done.

        Args:
            groups: Those that are known, besides those of which something is stored.
            alive_s: A runner whose row was renewed within this time is there.
        """
        with self._connect("planning a reshard") as conn, transaction(conn, self._dialect.begin_report):
            return self._plan(conn, number, groups, alive_s)

    def carry_out(self, number: int, groups: Sequence[str], *, alive_s: float) -> ReshardPlan:
        """Do it, all of it or nothing; what was done. The queues on the broker are left, and remembered.

        Raises:
            ConfigurationError: Runners are there.
            StoreUnavailable: Somebody holds a lock on the tables for too long; nothing was done.
        """
        self._evict_silent(alive_s)
        with self._connect("resharding") as conn, self._dialect.migration_scope(conn):
            for statement in self._dialect.lock_everything:
                run(conn, self._dialect.sql(statement))
            plan = self._plan(conn, number, groups, alive_s)
            if plan.refusal is not None:
                raise ConfigurationError(plan.refusal)
            if plan.is_done:
                return plan
            for move, page in self._tables():
                self._move(conn, move, page, number)
            self._change_number(conn, plan)
        return plan

    def _evict_silent(self, alive_s: float) -> None:
        # As other runners would do it: one that is frozen keeps its locks, and must not go on with the old number.
        holds = self._dialect.holds("", alive_s)
        with self._connect("looking for silent runners") as conn:
            found = self._runners.read(conn, holds.locked)
            silent = [runner for runner in found if not _is_there(runner, alive_s)]
            for runner in silent if len(silent) == len(found) else ():
                if self._runners.remove(conn, runner):
                    holds.end_sessions(conn, runner.worker, drains=True)

    def finished(self, number: int) -> None:
        """Nothing is left on the broker of shards beyond so many."""
        with self._connect("finishing a reshard") as conn, self._dialect.migration_scope(conn):
            if self._number(conn) == number:
                run(conn, self._forget_meta, {"name": "reshard_remains"})

    def _plan(self, conn: Connection, number: int, groups: Sequence[str], alive_s: float) -> ReshardPlan:
        before, remains = self._number(conn), self._remains(conn)
        locked = self._dialect.holds("", alive_s).locked
        stored, moving = {}, {}
        for name, (_, page) in zip(_TABLES, self._tables(), strict=True):
            stored[name], moving[name] = self._count(conn, page, number)
        known = {*groups, *remains.groups, *stored["message"], *stored["dead_letter"]}
        return ReshardPlan(
            before,
            number,
            tuple(
                GroupPlan(group, *(count[name][group] for name in _TABLES for count in (stored, moving)))
                for group in sorted(known)
            ),
            tuple(runner for runner in self._runners.read(conn, locked) if _is_there(runner, alive_s)),
            max(before, remains.shards),
        )

    def _count(self, conn: Connection, page: Statement, number: int) -> tuple[Counter[str], Counter[str]]:
        stored: Counter[str] = Counter()
        moving: Counter[str] = Counter()
        for rows in self._pages(conn, page):
            stored.update(row[1] for row in rows)
            moving.update(row[1] for row in rows if _number_of(row, number) != row[2])
        return stored, moving

    def _move(self, conn: Connection, move: Statement, page: Statement, number: int) -> None:
        for rows in self._pages(conn, page):
            moved = [{"id": row[0], "shard": _number_of(row, number)} for row in rows]
            run(conn, move, {"rows": self._dialect.rows(moved)})

    def _pages(self, conn: Connection, page: Statement) -> Iterator[Sequence[Any]]:
        after = ""
        while rows := fetch(conn, page, {"after": after, "limit": _PAGE}):
            yield rows
            after = rows[-1][0]

    def _change_number(self, conn: Connection, plan: ReshardPlan) -> None:
        remains = Remains(max(plan.had, plan.after), tuple(group.group for group in plan.groups))
        run(conn, self._set_meta, {"name": "shards_per_group", "value": str(plan.after)})
        run(conn, self._set_meta, {"name": "reshard_remains", "value": msgspec.json.encode(remains).decode()})
        run(conn, self._drop_leases, {"shards": plan.after})
        run(conn, self._free_leases)
        if self._dialect.change_shards:
            run(conn, self._dialect.sql(self._dialect.change_shards, shards=str(plan.after)))

    def _number(self, conn: Connection) -> int:
        return int(fetch(conn, self._meta, {"name": "shards_per_group"})[0][0])

    def _remains(self, conn: Connection) -> Remains:
        rows = fetch(conn, self._meta, {"name": "reshard_remains"})
        return msgspec.json.decode(rows[0][0], type=Remains) if rows else Remains(0, ())

    def _tables(self) -> tuple[tuple[Statement, Statement], ...]:
        return (
            (self._move_message, self._page_message),
            (self._move_dead_letter, self._page_dead_letter),
        )


def _is_there(runner: Runner, alive_s: float) -> bool:
    # A lock that is gone tells sooner than a row that grows old: that process is dead.
    return runner.unseen_s < alive_s and runner.locked is not False


def _number_of(row: Sequence[Any], number: int) -> int:
    _, group, _, entity_id = row
    # SQLite keeps in a column whatever somebody writes there; drains read it so too.
    return shard_of(group, entity_id if isinstance(entity_id, str) else repr(entity_id), number).number
