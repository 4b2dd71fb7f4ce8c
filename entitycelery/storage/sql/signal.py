"""Signals in the table `message`: completing them, and listing those that wait.

A row waits until it has an outcome or is due, which is its time-out. The row lock decides between those who complete
it; a turn that finds it due sees in its commit, by `rev`, whether somebody was faster.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import Address
from entitycelery.message import NewMessage
from entitycelery.signals import SIGNAL
from entitycelery.storage.port import WaitingSignal
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch


class SignalRows:
    """Statements on signals that wait; completing relies on the primary key, listing on message_signal."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        waits = f"operation = '{SIGNAL}' AND attempt = 0 AND {dialect.json_field('args', 'outcome')} IS NULL"
        self._complete = dialect.sql(
            f"UPDATE {{message}} SET args = {{completed}}, due_at = {dialect.now}, rev = rev + 1, nonce = :nonce "
            f"WHERE id = :id AND {waits} AND due_at > {dialect.now} RETURNING id",
            completed=dialect.json_with("args", "outcome", ":outcome"),
        )
        self._list = dialect.sql(
            "SELECT type, entity_id, {args_text}, {sent}, {due} FROM {message} "
            f"WHERE {waits} AND (type, entity_id) > (:after_type, :after_id) "
            "AND (CAST(:type AS text) IS NULL OR (type = :type AND entity_id = :entity_id)) "
            "ORDER BY type, entity_id, id LIMIT :limit",
            args_text=dialect.json_text("args"),
            sent=dialect.to_epoch("sent_at"),
            due=dialect.to_epoch("due_at"),
        )
        self._secret = dialect.sql("SELECT value FROM {meta} WHERE name = 'signal_secret'")

    def complete(self, conn: Connection, messages: Sequence[NewMessage], nonce: str) -> set[str]:
        """Give outcomes to the rows of these ids that wait for one, in the caller's transaction; their ids."""
        completed: set[str] = set()
        for message in sorted(messages, key=lambda message: message.id):
            outcome = {"id": message.id, "outcome": message.completes, "nonce": nonce}
            completed.update(row[0] for row in fetch(conn, self._complete, outcome))
        return completed

    def list(self, conn: Connection, address: Address | None, after: Address | None, limit: int) -> list[WaitingSignal]:
        """Signals that wait, of one entity or of all in order of address, from behind `after`."""
        start = after or Address("", "")
        parameters = {
            "type": address and address.type,
            "entity_id": address and address.id,
            "after_type": start.type,
            "after_id": start.id,
            "limit": limit,
        }
        return [WaitingSignal(Address(row[0], row[1]), *row[2:]) for row in fetch(conn, self._list, parameters)]

    def secret(self, conn: Connection) -> bytes:
        """By what the tokens of this cluster are signed."""
        return str(fetch(conn, self._secret)[0][0]).encode()
