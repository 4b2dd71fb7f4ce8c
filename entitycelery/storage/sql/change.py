"""Changes to a pending message from outside: it is cancelled or comes at another time.

Both take the message's row lock, as a turn's commit does, and both change what that commit checks: a cancelled
message is gone, a rescheduled one has another `rev`. So either the change wins or the turn, never both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.answering import answer_mail, asker_of
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.message import Answer, Change, ChangeOutcome, Status
from entitycelery.signals import SIGNAL
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.moment import Moments
from entitycelery.storage.sql.statement import Row, fetch, run, transaction

_ATTEMPTS = 20


class Changes:
    """Statements that cancel and reschedule; all rely on primary keys."""

    def __init__(self, dialect: Dialect, moments: Moments, messages: Messages, hashing: Hashing) -> None:
        self._dialect = dialect
        self._messages = messages
        self._hashing = hashing
        self._moments = moments
        self._lock = dialect.sql(
            "SELECT shard_group, shard, blocking, reply_to, operation FROM {message} WHERE id = :id "
            + dialect.for_update
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
            f"UPDATE {{message}} SET due_at = {due}, rev = rev + 1 WHERE id = :id AND NOT parked "
            f"RETURNING shard_group, shard, due_at <= {dialect.now}"
        )
        self._status = dialect.sql(
            "SELECT CASE WHEN parked THEN 'done' ELSE 'pending' END FROM {message} WHERE id = :id "
            "UNION ALL SELECT status FROM {reply} WHERE id = :id"
        )

    def cancel(self, conn: Connection, message_id: str) -> tuple[Change, list[ShardId]]:
        """End a pending message with a reply that says cancelled; the shards to ring: its own if it held others back,
        and that of the entity that asked."""
        for _ in range(_ATTEMPTS):
            with transaction(conn, self._dialect.begin):
                row = self.cancel_within(conn, message_id)
            if row is not None:
                return self._cancelled(conn, message_id, row)
            change = self._why_not(conn, message_id)
            if change is not None:
                return change, []
        raise _misbehaving(message_id)

    def cancel_within(self, conn: Connection, message_id: str) -> Row | None:
        """End a pending message within the caller's transaction; None if it is not pending.

        Raises:
            ConfigurationError: It is a signal, with which somebody counts.
        """
        rows = fetch(conn, self._lock, {"id": message_id})
        if not rows:
            return None
        if rows[0][4] == SIGNAL:
            raise ConfigurationError(
                f"message {message_id} is a signal that waits: cancel it by entities.signal(...).cancel()"
            )
        # A blocking head is gone with its row, so what it held back can run from this commit on.
        run(conn, self._answer, {"id": message_id})
        run(conn, self._delete, {"id": message_id})
        answer = Answer(message_id, rows[0][3], Status.CANCELLED)
        mail = answer_mail(answer, self._dialect.cluster, self._hashing.number)
        if mail is not None:
            self._messages.append(conn, [mail], os.urandom(8).hex())
        return rows[0]

    def _cancelled(self, conn: Connection, message_id: str, row: Row) -> tuple[Change, list[ShardId]]:
        group, number, blocking, reply_to, _ = row
        shards = [ShardId(group, number)] if blocking else []
        if asker := asker_of(reply_to):
            shards.append(asker.shard(self._hashing.number))
        elif reply_to and self._announce:
            fetch(conn, self._announce, {"channels": [reply_to], "replied": [message_id]})
        return Change(message_id, ChangeOutcome.CANCELLED, Status.CANCELLED), shards

    def reschedule(
        self, conn: Connection, message_id: str, delay_s: float | None, deliver_at_epoch_s: float | None
    ) -> tuple[Change, list[ShardId]]:
        """Give a pending message another due time; the shard to ring if that has come already. Runners are told if it
        comes soon.

        A message that waits for its retry goes on blocking its mailbox, if it does: the order is kept.
        """
        bound = {"id": message_id, "delay_s": delay_s, "deliver_at": deliver_at_epoch_s}
        for _ in range(_ATTEMPTS):
            rows: Sequence[Row] = fetch(conn, self._reschedule, bound)
            if rows:
                group, number, due = rows[0]
                if not due and self._moments.is_soon(delay_s, deliver_at_epoch_s):
                    self._moments.tell(conn, [message_id])
                return Change(message_id, ChangeOutcome.RESCHEDULED, None), [ShardId(group, number)] if due else []
            change = self._why_not(conn, message_id)
            if change is not None:
                return change, []
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
