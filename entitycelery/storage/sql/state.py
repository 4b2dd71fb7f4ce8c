"""The table `state`: one row an entity, its version checked by every commit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.address import Address
from entitycelery.message import EntityCommit, StoredState
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, run_script

NEVER_STORED = StoredState(version=0, state_version=0, state=None)


class States:
    """Statements that read and write states; all rely on the primary key (type, entity_id)."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        text = dialect.json_text("s.state")
        self._of_type = dialect.sql(
            f"SELECT s.type, s.entity_id, s.version, s.state_version, {text} FROM {dialect.states_of_ids}"
        )
        self._list = dialect.sql(
            "SELECT s.type, s.entity_id, s.version, s.state_version, {text} FROM {state} AS s "
            "WHERE s.state IS NOT NULL AND (s.type, s.entity_id) > (:after_type, :after_id) "
            "AND (CAST(:type AS text) IS NULL OR s.type = :type) ORDER BY s.type, s.entity_id LIMIT :limit",
            text=text,
        )
        self._write = dialect.sql(state_write(dialect, "rows"))

    def read(
        self,
        conn: Connection,
        addresses: Collection[Address],
        *,
        before: str | None = None,
        before_parameters: Mapping[str, Any] | None = None,
    ) -> dict[Address, StoredState]:
        """The committed states of those entities that have a row; after the statement `before`, in its round trip."""
        by_type: dict[str, list[str]] = {}
        for address in addresses:
            by_type.setdefault(address.type, []).append(address.id)
        found: dict[Address, StoredState] = {}
        for type_name, ids in by_type.items():
            statements = [self._of_type] if before is None else [before, self._of_type]
            parameters = {"type": type_name, "ids": self._dialect.values(ids), **(before_parameters or {})}
            for row in run_script(conn, statements, parameters, together=self._dialect.together).rows:
                found[Address(row[0], row[1])] = StoredState(row[2], row[3], row[4])
            before = None
        return found

    def list(
        self, conn: Connection, type_name: str | None, after: Address | None, limit: int
    ) -> list[tuple[Address, StoredState]]:
        """Live entities in order of address, from after `after`."""
        start = after or Address(type_name or "", "")
        parameters = {"type": type_name, "after_type": start.type, "after_id": start.id, "limit": limit}
        return [(Address(row[0], row[1]), StoredState(*row[2:])) for row in fetch(conn, self._list, parameters)]

    def write(self, conn: Connection, commits: Sequence[EntityCommit]) -> set[Address]:
        """Write states whose version is as it was read; return the winners."""
        return {Address(*row) for row in fetch(conn, self._write, {"rows": self._dialect.rows(state_rows(commits))})}


def state_write(dialect: Dialect, rows: str, condition: str = "true") -> str:
    """The statement that writes the states of a parameter; the rows that come back have won against other writers."""
    body = dialect.json("r.state")
    source = dialect.rowset(rows, type="text", entity_id="text", version="int", state_version="int", state="text")
    # Unsorted writes of overlapping drains deadlock; sorted ones do not.
    return (
        "INSERT INTO {state} (type, entity_id, version, state_version, state, updated_at) "
        f"SELECT r.type, r.entity_id, r.version + 1, r.state_version, {body}, {dialect.now} FROM {source} "
        f"WHERE {condition} ORDER BY r.type, r.entity_id "
        "ON CONFLICT (type, entity_id) DO UPDATE SET version = excluded.version, "
        "state_version = excluded.state_version, state = excluded.state, updated_at = excluded.updated_at "
        "WHERE state.version = excluded.version - 1 RETURNING type, entity_id"
    )


def state_rows(commits: Sequence[EntityCommit]) -> list[dict[str, object]]:
    """The rows for `state_write`."""
    return [
        {
            "type": c.address.type,
            "entity_id": c.address.id,
            "version": c.version,
            "state_version": c.state_version,
            "state": c.state,
        }
        for c in commits
    ]
