"""The table `state`: one row an entity, its version checked by every commit.

Where what was deleted can lie in the way (`Dialect.keeps_what_is_dead`), a state would be found only past all the
versions that it has had while some transaction is open. There the key ends with an era, which changes with every 16th
version: the newest era is read first, and behind it are the others. An update within an era touches no index. Since the
era makes the key no longer tell whether an entity has a state, the first commit leaves a row in the table `entity`,
which never changes: of two first commits one finds it there, however late it comes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.address import Address
from entitycelery.message import EntityCommit, StoredState
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, run_script

NEVER_STORED = StoredState(version=0, state_version=0, state=None)
_COLUMNS = {
    "type": "text",
    "entity_id": "text",
    "version": "int",
    "state_version": "int",
    "state": "text",
    "timers": "text",
    "signals": "text",
}
# Somebody has deleted a state by hand, and its entity begins anew.
_FORGET = """
    DELETE FROM {entity} AS e USING {rows} CROSS JOIN LATERAL (
        SELECT ctid AS place FROM {entity} WHERE type = r.type AND entity_id = r.entity_id LIMIT 1
    ) AS f
    WHERE e.ctid = f.place AND NOT EXISTS (SELECT 1 FROM {state} WHERE type = r.type AND entity_id = r.entity_id)
    RETURNING e.type, e.entity_id
"""


class States:
    """Statements that read and write states; all rely on the primary key, which begins with type and entity_id."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        text, timers, signals = (dialect.json_text(f"s.{column}") for column in ("state", "timers", "signals"))
        self._of_type = dialect.sql(
            f"SELECT s.type, s.entity_id, s.version, s.state_version, {text}, {timers}, {signals} "
            f"FROM {dialect.states_of_ids}"
        )
        self._list = dialect.sql(
            "SELECT s.type, s.entity_id, s.version, s.state_version, {text} FROM {state} AS s "
            "WHERE s.state IS NOT NULL AND (s.type, s.entity_id) > (:after_type, :after_id) "
            "AND (CAST(:type AS text) IS NULL OR s.type = :type) ORDER BY s.type, s.entity_id LIMIT :limit",
            text=text,
        )
        self._write = dialect.sql(state_write(dialect))
        self._forget = dialect.sql(_FORGET, rows=dialect.rowset("rows", **_COLUMNS)) if dialect.state_steps else None

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
                found[Address(row[0], row[1])] = StoredState(*row[2:])
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
        won = self._written(conn, commits)
        begun = [commit for commit in commits if commit.version == 0 and commit.address not in won]
        if begun and self._forget:
            # In a later statement: whoever was faster has committed by now, so a state is seen where there is one.
            rows = fetch(conn, self._forget, {"rows": self._dialect.rows(state_rows(begun))})
            forgotten = {Address(*row) for row in rows}
            if forgotten:
                won |= self._written(conn, [commit for commit in begun if commit.address in forgotten])
        return won

    def _written(self, conn: Connection, commits: Sequence[EntityCommit]) -> set[Address]:
        return {Address(*row) for row in fetch(conn, self._write, {"rows": self._dialect.rows(state_rows(commits))})}


def state_write(dialect: Dialect) -> str:
    """The statement that writes the states of `:rows`; those that come back have won against other writers."""
    if dialect.state_steps:
        return f"WITH {state_steps(dialect, 'rows')} SELECT type, entity_id FROM won"
    # Unsorted writes of overlapping drains deadlock; sorted ones do not.
    return (
        "INSERT INTO {state} (type, entity_id, version, state_version, state, timers, signals, updated_at) "
        "SELECT r.type, r.entity_id, r.version + 1, r.state_version, "
        f"{dialect.json('r.state')}, {dialect.json('r.timers')}, {dialect.json('r.signals')}, {dialect.now} "
        f"FROM {dialect.rowset('rows', **_COLUMNS)} WHERE true ORDER BY r.type, r.entity_id "
        "ON CONFLICT (type, entity_id) DO UPDATE SET version = excluded.version, "
        "state_version = excluded.state_version, state = excluded.state, timers = excluded.timers, "
        "signals = excluded.signals, updated_at = excluded.updated_at "
        "WHERE state.version = excluded.version - 1 RETURNING type, entity_id"
    )


def state_steps(dialect: Dialect, rows: str, condition: str = "true") -> str:
    """The same as common table expressions, the last of which is `won`, for a statement that does more."""
    source = dialect.rowset(rows, **_COLUMNS)
    return dialect.state_steps.replace("{source}", source).replace("{condition}", condition)


def state_rows(commits: Sequence[EntityCommit]) -> list[dict[str, object]]:
    """The rows for `state_write`."""
    return [
        {
            "type": c.address.type,
            "entity_id": c.address.id,
            "version": c.version,
            "state_version": c.state_version,
            "state": c.state,
            # Left out they are null, and most entities have none.
            **({"timers": c.timers} if c.timers is not None else {}),
            **({"signals": c.signals} if c.signals is not None else {}),
        }
        for c in commits
    ]
