"""The table `runner`: who is there, renewed by each runner itself, removed by whoever finds it dead."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId, parse_shard
from entitycelery.clock import epoch_from, utc_from_epoch
from entitycelery.exceptions import ConfigurationError
from entitycelery.placement import MACHINE_IDS, NewRunner, Runner
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, run

_SAME_INSTANT_S = 0.00001


class Runners:
    """Statements over a table of some dozen rows, all by primary key or over the whole."""

    def __init__(self, dialect: Dialect) -> None:
        now = dialect.now
        self._insert = dialect.sql(
            "INSERT INTO {runner} (instance, worker, address, host, pid, shard_groups, weight, pool, library_version, "
            "app_version, machine_id, process, started_at, seen_at) VALUES (:instance, :worker, :address, :host, "
            ":pid, :shard_groups, :weight, :pool, :library_version, :app_version, :machine_id, :process, "
            f"{now}, {now}) ON CONFLICT DO NOTHING"
        )
        self._machine_ids = dialect.sql("SELECT machine_id FROM {runner}")
        self._remove_worker = dialect.sql("DELETE FROM {runner} WHERE worker = :worker")
        self._confirm = dialect.sql(
            f"UPDATE {{runner}} SET seen_at = {now}, starved = :starved, leaving = :leaving, refused = :refused "
            "WHERE instance = :instance"
        )
        unseen_s = f"{dialect.to_epoch(now)} - {dialect.to_epoch('seen_at')}"
        self._list = dialect.sql(
            "SELECT instance, worker, address, host, pid, shard_groups, weight, pool, library_version, app_version, "
            f"machine_id, {dialect.to_epoch('started_at')}, {dialect.to_epoch('seen_at')}, {unseen_s}, starved, "
            "leaving, process, refused FROM {runner} ORDER BY address, instance"
        )
        # As it was seen: when by now that was, the database's clock says only while nobody steps it. A renewal differs
        # by more than what an instant loses on its way.
        as_seen = f"abs({dialect.to_epoch('seen_at')} - :seen_at) < {_SAME_INSTANT_S:.5f}"
        self._remove = dialect.sql(f"DELETE FROM {{runner}} WHERE instance = :instance AND {as_seen}")
        self._withdraw = dialect.sql("DELETE FROM {runner} WHERE instance = :instance")
        self._is_registered = dialect.sql("SELECT count(*) FROM {runner} WHERE worker = :worker")

    def register(
        self, conn: Connection, new: NewRunner, process: str | None, hold: Callable[[Connection, str], None]
    ) -> str:
        """Add a row with a machine id that nobody has, in the place of one of the same worker; its instance.

        `hold` is called before the row can be seen: whoever sees a row without a lock takes the runner for dead.

        Raises:
            ConfigurationError: All machine ids are taken.
        """
        run(conn, self._remove_worker, {"worker": new.worker})
        instance = os.urandom(4).hex()
        hold(conn, instance)
        while True:
            taken = {row[0] for row in fetch(conn, self._machine_ids)}
            free = next((number for number in range(MACHINE_IDS) if number not in taken), None)
            if free is None:
                raise ConfigurationError(f"{MACHINE_IDS} runners are registered: there is no free machine id")
            row = {
                "instance": instance,
                "worker": new.worker,
                "address": new.address,
                "host": new.host,
                "pid": new.pid,
                "shard_groups": ",".join(new.groups),
                "weight": new.weight,
                "pool": new.pool,
                "library_version": new.library_version,
                "app_version": new.app_version,
                "machine_id": free,
                "process": process,
            }
            # Refused where another runner took the same machine id meanwhile.
            if run(conn, self._insert, row):
                return instance

    def confirm(
        self, conn: Connection, instance: str, starved: bool, leaving: bool, refused: Collection[ShardId]
    ) -> bool:
        """Renew a row; False where it is gone."""
        given = {
            "instance": instance,
            "starved": starved,
            "leaving": leaving,
            "refused": ",".join(str(shard) for shard in sorted(refused)),
        }
        return run(conn, self._confirm, given) == 1

    def read(
        self, conn: Connection, locked: Callable[[Connection, Sequence[tuple[str, str | None]]], dict[str, bool]]
    ) -> tuple[Runner, ...]:
        """All runners; `locked` says of (instance, process) pairs whether they hold their locks, where it can."""
        rows = fetch(conn, self._list)
        # After the rows: a runner has its lock before it has a row.
        held = locked(conn, [(row[0], row[16]) for row in rows])
        return tuple(_runner(row, held.get(row[0])) for row in rows)

    def remove(self, conn: Connection, runner: Runner) -> bool:
        """Remove a row that has not been renewed since it was read; whether it was there."""
        given = {"instance": runner.instance, "seen_at": epoch_from(runner.seen_at)}
        return run(conn, self._remove, given) == 1

    def withdraw(self, conn: Connection, instance: str) -> None:
        """Remove one's own row."""
        run(conn, self._withdraw, {"instance": instance})

    def is_registered(self, conn: Connection, worker: str) -> bool:
        """Whether a worker has a row."""
        return bool(fetch(conn, self._is_registered, {"worker": worker})[0][0])


def _runner(row: Sequence[Any], locked: bool | None) -> Runner:
    return Runner(
        *(row[0], row[1], row[2], row[3], row[4], tuple(row[5].split(",")), float(row[6])),
        *(row[7], row[8], row[9], row[10], utc_from_epoch(row[11]), utc_from_epoch(row[12])),
        unseen_s=max(0.0, float(row[13])),
        starved=bool(row[14]),
        leaving=bool(row[15]),
        locked=locked,
        refused=frozenset(parse_shard(written) for written in filter(None, row[17].split(","))),
    )
