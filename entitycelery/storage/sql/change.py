"""Changes to a pending message from outside: it is cancelled or comes at another time.

Both take the message's row lock, as a turn's commit does, and both change what that commit checks: a cancelled
message is gone, a rescheduled one has another `rev`. So either the change wins or the turn, never both.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import Change, ChangeOutcome, Status
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import Row, fetch, run, transaction

_ATTEMPTS = 20


class Changes:
    """Statements that cancel and reschedule; all rely on primary keys."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._lock = dialect.sql(
            "SELECT shard_group, shard, blocking, reply_to FROM {message} WHERE id = :id " + dialect.for_update
        )
        # As in a turn's commit: no ON CONFLICT, so a second answer to one message cannot commit.
        self._answer = dialect.sql(
            "INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, finished_at) "
            f"SELECT id, fingerprint, type, entity_id, operation, 'cancelled', {dialect.now} FROM {{message}} "
            "WHERE id = :id"
        )
        self._delete = dialect.sql("DELETE FROM {message} WHERE id = :id")
        self._announce = dialect.sql(dialect.announce)
        due = (
            f"coalesce({dialect.from_epoch('CAST(:deliver_at AS double precision)')}, "
            f"{dialect.after('CAST(:delay_s AS double precision)')})"
        )
        self._reschedule = dialect.sql(
            f"UPDATE {{message}} SET due_at = {due}, rev = rev + 1 WHERE id = :id "
            f"RETURNING shard_group, shard, due_at <= {dialect.now}"
        )
        self._status = dialect.sql(
            "SELECT 'pending' FROM {message} WHERE id = :id UNION ALL SELECT status FROM {reply} WHERE id = :id"
        )

    def cancel(self, conn: Connection, message_id: str) -> tuple[Change, ShardId | None]:
        """End a pending message with a reply that says cancelled; the shard to ring if it held others back."""
        for _ in range(_ATTEMPTS):
            with transaction(conn, self._dialect.begin):
                rows = fetch(conn, self._lock, {"id": message_id})
                if rows:
                    # A blocking head is gone with its row, so what it held back can run from this commit on.
                    run(conn, self._answer, {"id": message_id})
                    run(conn, self._delete, {"id": message_id})
            if rows:
                return self._cancelled(conn, message_id, rows[0])
            change = self._why_not(conn, message_id)
            if change is not None:
                return change, None
        raise _misbehaving(message_id)

    def _cancelled(self, conn: Connection, message_id: str, row: Row) -> tuple[Change, ShardId | None]:
        group, number, blocking, reply_to = row
        if reply_to and self._announce:
            fetch(conn, self._announce, {"channels": [reply_to], "replied": [message_id]})
        ring = ShardId(group, number) if blocking else None
        return Change(message_id, ChangeOutcome.CANCELLED, Status.CANCELLED), ring

    def reschedule(
        self, conn: Connection, message_id: str, delay_s: float | None, deliver_at_epoch_s: float | None
    ) -> tuple[Change, ShardId | None]:
        """Give a pending message another due time; the shard to ring if that has come already.

        A message that waits for its retry goes on blocking its mailbox, if it does: the order is kept.
        """
        bound = {"id": message_id, "delay_s": delay_s, "deliver_at": deliver_at_epoch_s}
        for _ in range(_ATTEMPTS):
            rows: Sequence[Row] = fetch(conn, self._reschedule, bound)
            if rows:
                group, number, due = rows[0]
                return Change(message_id, ChangeOutcome.RESCHEDULED, None), ShardId(group, number) if due else None
            change = self._why_not(conn, message_id)
            if change is not None:
                return change, None
        raise _misbehaving(message_id)

    def _why_not(self, conn: Connection, message_id: str) -> Change | None:
        """Why a message could not be changed; None if it is pending after all: a dead letter was retried meanwhile."""
        found = [row[0] for row in fetch(conn, self._status, {"id": message_id})]
        if not found:
            return Change(message_id, ChangeOutcome.UNKNOWN, None)
        if "pending" in found:
            return None
        return Change(message_id, ChangeOutcome.FINISHED, Status(found[0]))


def _misbehaving(message_id: str) -> StoreUnavailable:
    return StoreUnavailable(f"message {message_id} comes and goes; the store is misbehaving")
