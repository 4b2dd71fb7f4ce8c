"""The table `singleton`: who runs each, how it is, and what operators want of it. Instants are the database's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.clock import utc_from_epoch
from entitycelery.singleton import LoopSpec, Seat, StoredSingleton
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, run

# Of the row that is ours as long as nobody has taken it since.
_OURS = "name = :name AND epoch = :epoch AND holder = :worker"
_NOBODYS = "holder = NULL, since = NULL, expires_at = NULL, pid = NULL, handed_over = true"


class Singletons:
    """Statements over a table of some rows: by primary key or over the whole."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        now = dialect.now
        # Whether the row decides is known to the session; where a lock does, it has been taken before.
        # Its successor waits for longer than a hold lives. One that is to end later than that was written before the
        # clock was stepped back; who lives writes it anew before it looks.
        too_late = dialect.after("successor_waits_s")
        unheld = f"(holder IS NULL OR expires_at IS NULL OR expires_at < {now} OR expires_at > {too_late})"
        rows = dialect.rowset("rows", name="text", shard_group="text", heartbeat_interval_s="float")
        self._declare = dialect.sql(
            "INSERT INTO {singleton} AS s (name, shard_group, heartbeat_interval_s) "
            "SELECT r.name, r.shard_group, r.heartbeat_interval_s FROM {rows} WHERE true ORDER BY r.name "
            "ON CONFLICT (name) DO UPDATE SET shard_group = excluded.shard_group, "
            "heartbeat_interval_s = excluded.heartbeat_interval_s WHERE s.shard_group <> excluded.shard_group "
            "OR s.heartbeat_interval_s <> excluded.heartbeat_interval_s",
            rows=rows,
        )
        # A runner that is not registered any more, or leaves, gets nothing by being wanted.
        wanted = "(SELECT min(o.worker) FROM {runner} AS o WHERE o.worker = s.wanted AND NOT o.leaving)"
        self._look = dialect.sql(
            f"SELECT name, number, epoch, holder, {unheld}, handed_over, successor_waits_s, asked_by, {wanted}, "
            f"avoided, restart_wanted FROM {{singleton}} AS s WHERE {dialect.any_of('name', 'names')} ORDER BY name"
        )
        self._confirm = dialect.sql(
            f"UPDATE {{singleton}} SET expires_at = {dialect.after(':held_for_s')} WHERE holder = :worker AND EXISTS "
            f"(SELECT 1 FROM {{rows}} WHERE r.name = {{singleton}}.name AND r.epoch = {{singleton}}.epoch) "
            f"AND expires_at >= {now}",
            rows=dialect.rowset("rows", name="text", epoch="int"),
        )
        take = (
            f"UPDATE {{singleton}} SET holder = :worker, address = :address, epoch = epoch + 1, since = {now}, "
            f"expires_at = {dialect.after(':held_for_s')}, handed_over = false, asked_by = NULL, "
            "successor_waits_s = :successor_waits_s, pid = NULL, "
            "avoided = CASE WHEN avoided = :worker THEN NULL ELSE avoided END "
            "WHERE name = :name AND epoch = :epoch{if} RETURNING epoch"
        )
        self._take = dialect.sql(take.replace("{if}", ""))
        self._take_unheld = dialect.sql(take.replace("{if}", f" AND {unheld}"))
        self._begin = dialect.sql(
            f"UPDATE {{singleton}} SET epoch = epoch + 1, pid = :pid, started_at = {now}, heartbeat_at = {now}, "
            f"restart_wanted = false, restarts = restarts + :again WHERE {_OURS} RETURNING epoch"
        )
        self._end = dialect.sql(f"UPDATE {{singleton}} SET pid = NULL WHERE {_OURS}")
        self._fail = dialect.sql(
            f"UPDATE {{singleton}} SET pid = NULL, last_failure = :failure, last_failure_at = {now} WHERE {_OURS}"
        )
        self._give = dialect.sql(f"UPDATE {{singleton}} SET {_NOBODYS} WHERE {_OURS}")
        self._ask = dialect.sql("UPDATE {singleton} SET asked_by = :worker WHERE name = :name AND epoch = :epoch")
        self._beat = dialect.sql(f"UPDATE {{singleton}} SET heartbeat_at = {now} WHERE name = :name AND epoch = :epoch")
        self._restart = dialect.sql("UPDATE {singleton} SET restart_wanted = true WHERE name = :name")
        self._move = dialect.sql("UPDATE {singleton} SET wanted = :wanted, avoided = :avoided WHERE name = :name")
        age_s = f"{dialect.to_epoch(now)} - {dialect.to_epoch('heartbeat_at')}"
        instants = {name: dialect.to_epoch(name) for name in ("since", "started_at", "heartbeat_at", "last_failure_at")}
        self._list = dialect.sql(
            f"SELECT name, shard_group, holder, address, epoch, {instants['since']}, pid, {instants['started_at']}, "
            f"{instants['heartbeat_at']}, {age_s}, heartbeat_interval_s, restarts, last_failure, "
            f"{instants['last_failure_at']}, wanted FROM {{singleton}} ORDER BY name"
        )

    # Of runners

    def declare(self, conn: Connection, specs: Collection[LoopSpec]) -> None:
        """Have a row for each of these."""
        rows = [
            {
                "name": spec.name,
                "shard_group": spec.shard_group,
                "heartbeat_interval_s": spec.heartbeat_interval_s,
            }
            for spec in sorted(specs, key=lambda spec: spec.name)
        ]
        run(conn, self._declare, {"rows": self._dialect.rows(rows)})

    def look(self, conn: Connection, names: Collection[str]) -> list[Seat]:
        """The rows of these; `is_free` as far as rows tell."""
        return [_seat(row) for row in fetch(conn, self._look, {"names": self._dialect.values(sorted(names))})]

    def confirm(self, conn: Connection, worker: str, held: Mapping[str, int], held_for_s: float) -> None:
        """Extend those holds, by name and epoch, that have not run out."""
        rows = [{"name": name, "epoch": epoch} for name, epoch in sorted(held.items())]
        run(conn, self._confirm, {"worker": worker, "held_for_s": held_for_s, "rows": self._dialect.rows(rows)})

    def take(self, conn: Connection, seat: Seat, if_unheld: bool, **holder: Any) -> int | None:
        """Write down another holder, if the row is as in `seat`; the new epoch."""
        statement = self._take_unheld if if_unheld else self._take
        rows = fetch(conn, statement, {"name": seat.name, "epoch": seat.epoch, **holder})
        return int(rows[0][0]) if rows else None

    def begin(self, conn: Connection, pid: int, *, again: bool, **ours: Any) -> int | None:
        """A process begins to run it, `again` by the same holder; the new epoch, None where it is not ours any more."""
        rows = fetch(conn, self._begin, {"pid": pid, "again": int(again), **ours})
        return int(rows[0][0]) if rows else None

    def end(self, conn: Connection, failure: str | None, **ours: Any) -> None:
        """Its process has ended."""
        if failure is None:
            run(conn, self._end, ours)
        else:
            run(conn, self._fail, {"failure": failure, **ours})

    def give(self, conn: Connection, **ours: Any) -> None:
        """It is stopped, and nobody's."""
        run(conn, self._give, ours)

    def ask(self, conn: Connection, name: str, epoch: int, worker: str) -> None:
        """Have the holder give it up."""
        run(conn, self._ask, {"name": name, "epoch": epoch, "worker": worker})

    # Of its process

    def beat(self, conn: Connection, name: str, epoch: int) -> bool:
        """Write its heartbeat; False where another process runs it by now."""
        return run(conn, self._beat, {"name": name, "epoch": epoch}) == 1

    # Of operators

    def restart(self, conn: Connection, name: str) -> bool:
        """Want it to be started again; False where there is none of the name."""
        return run(conn, self._restart, {"name": name}) == 1

    def move(self, conn: Connection, name: str, wanted: str | None, avoided: str | None) -> bool:
        """Want it at, or away from, a worker; False where there is none of the name."""
        return run(conn, self._move, {"name": name, "wanted": wanted, "avoided": avoided}) == 1

    def read(self, conn: Connection) -> list[StoredSingleton]:
        """All that there have been, by name."""
        return [_stored(row) for row in fetch(conn, self._list)]


def _seat(row: Sequence[Any]) -> Seat:
    name, number, epoch, holder, is_free, handed_over, waits_s, asked_by, wanted, avoided, restart_wanted = row
    return Seat(
        *(name, number, epoch, holder, bool(is_free), bool(handed_over), float(waits_s)),
        *(asked_by, wanted, avoided, bool(restart_wanted)),
    )


def _stored(row: Sequence[Any]) -> StoredSingleton:
    return StoredSingleton(
        *(row[0], row[1], row[2], row[3], row[4], _instant(row[5]), row[6], _instant(row[7]), _instant(row[8])),
        heartbeat_age_s=None if row[9] is None else max(0.0, float(row[9])),
        heartbeat_interval_s=float(row[10]),
        restarts=row[11],
        last_failure=row[12],
        last_failure_at=_instant(row[13]),
        wanted=row[14],
    )


def _instant(epoch_s: float | None) -> datetime | None:
    return None if epoch_s is None else utc_from_epoch(epoch_s)
