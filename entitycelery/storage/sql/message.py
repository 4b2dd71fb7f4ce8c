"""The table `message` on the senders' side: storing messages so that a key never doubles, and looking at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.address import Address, ShardId, is_message_id
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import AppendOutcome, NewMessage, PendingMessage
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.failure import failure_of_json
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.statement import fetch, rollback, run, run_script

_COLUMNS = {
    "id": "text",
    "shard_group": "text",
    "shard": "int",
    "type": "text",
    "entity_id": "text",
    "lock_key": "int",
    "operation": "text",
    "args": "text",
    "fingerprint": "text",
    "sender": "text",
    "reply_to": "text",
    "deliver_at": "float",
    "delay_s": "float",
    "expires_s": "float",
    "expires_at": "float",
}
_ATTEMPTS = 20


class Messages:
    """Statements that send and show messages."""

    def __init__(self, dialect: Dialect, hashing: Hashing) -> None:
        self._dialect = dialect
        self._hashing = hashing
        rows = dialect.rowset("rows", **_COLUMNS)
        self._insert = dialect.sql(dialect.insert_message(), rows=rows)
        certainly = dialect.insert_certainly.replace("{insert}", dialect.insert_message())
        self._insert_certainly = dialect.sql(certainly, rows=rows)
        # Only a row of our own can match here: that of a key which is finished already.
        self._withdraw_finished = dialect.sql(
            "DELETE FROM {message} WHERE {among} AND EXISTS (SELECT 1 FROM {reply} WHERE reply.id = message.id)",
            among=dialect.any_of("id", "ids"),
        )
        self._look = dialect.sql(
            "SELECT id, fingerprint, coalesce(nonce = :nonce, false), 1 FROM {message} WHERE {among} "
            "UNION ALL SELECT id, fingerprint, false, 0 FROM {reply} WHERE {among}",
            among=dialect.any_of("id", "ids"),
        )
        # Two counts, since each of the two indexes has a part of the table.
        of_one = "SELECT count(*) FROM {message} WHERE lock_key = :lock_key AND type = :type AND entity_id = :entity_id"
        ready = f"{of_one} AND shard_group = :shard_group AND shard = :shard AND due_at IS NULL"
        self._count = dialect.sql(f"SELECT ({ready}) + ({of_one} AND due_at IS NOT NULL)")
        self._pending_ids = dialect.sql("SELECT id FROM {message} WHERE {among}", among=dialect.any_of("id", "ids"))
        shown = (
            "SELECT id, type, entity_id, operation, {args_text}, shard_group, shard, attempt, crashes, "
            "{sent}, {due}, {failure_text} FROM {message}"
        )
        fragments = {
            "args_text": dialect.json_text("args"),
            "sent": dialect.to_epoch("sent_at"),
            "due": dialect.to_epoch("due_at"),
            "failure_text": dialect.json_text("last_failure"),
        }
        of_shard = " WHERE shard_group = :shard_group AND shard = :shard"
        of_entity = f"{of_shard} AND lock_key = :lock_key AND type = :type AND entity_id = :entity_id"
        self._show_all = dialect.sql(f"{shown} ORDER BY seq LIMIT :limit", **fragments)
        self._show_shard = dialect.sql(f"{shown}{of_shard} ORDER BY seq LIMIT :limit", **fragments)
        self._show_entity = dialect.sql(f"{shown}{of_entity} ORDER BY seq LIMIT :limit", **fragments)

    def append(
        self, conn: Connection, messages: Sequence[NewMessage], nonce: str, *, again: bool = False
    ) -> list[AppendOutcome]:
        """Store messages inside the caller's transaction; index used: the primary keys of message and reply.

        Raises:
            ConfigurationError: The store was made with another number of shards.
        """
        if any(message.keyed or again for message in messages):
            messages, outcomes = self._append_keyed(conn, messages, nonce)
        else:
            messages, outcomes = self._append_plain(conn, messages, nonce)
        self._hashing.agree()
        limited: dict[Address, list[NewMessage]] = {}
        for message, outcome in zip(messages, outcomes, strict=True):
            if message.capacity is not None and outcome is AppendOutcome.STORED:
                limited.setdefault(message.address, []).append(message)
        full = {message_id for stored in limited.values() for message_id in self._overflow(conn, stored)}
        return [AppendOutcome.FULL if m.id in full else outcome for m, outcome in zip(messages, outcomes, strict=True)]

    def append_certainly(
        self,
        conn: Connection,
        message: NewMessage,
        nonce: str,
        question: tuple[str, Mapping[str, Any]] | None = None,
        *,
        flushed: bool = True,
    ) -> bool:
        """Store a message without a key, commit, and ask a question, if there is one, that counts after the commit.

        Raises:
            ConfigurationError: As `append`.
        """
        if not self._dialect.together:
            self._append_plain(conn, [message], nonce)
            self._hashing.agree()
            return False
        asked, parameters = question or ("", {})
        statements = [self._dialect.begin, self._insert_certainly, "COMMIT"]
        if not flushed:
            statements.insert(1, self._dialect.unflushed)
        if asked:
            statements.append(asked)
        _, inserted = self._inserted([message], nonce)
        try:
            answer = run_script(conn, statements, {**inserted, **parameters}, together=True).rows
        except DBAPIError as exc:
            rollback(conn)
            if not self._dialect.is_overtaken(exc):
                raise
            # Rare enough to take two steps; nobody is known to look at the shard where it is now.
            self._append_plain(conn, [message], nonce)
            return False
        self._hashing.agree()
        return bool(asked and answer[0][0])

    def _append_plain(
        self, conn: Connection, messages: Sequence[NewMessage], nonce: str
    ) -> tuple[Sequence[NewMessage], list[AppendOutcome]]:
        for _ in range(_ATTEMPTS):
            hashed, inserted = self._inserted(messages, nonce)
            if run(conn, self._insert, inserted) == len(messages):
                return hashed, [AppendOutcome.STORED] * len(messages)
            self._hashing.follow(conn)
        raise StoreUnavailable("a message was not stored again and again; the store is misbehaving")

    def _append_keyed(
        self, conn: Connection, messages: Sequence[NewMessage], nonce: str
    ) -> tuple[Sequence[NewMessage], list[AppendOutcome]]:
        # Insert first, look afterwards, in a later statement: see "Identity and keys" in docs/explanation/protocol.md.
        ids = self._dialect.values([m.id for m in messages])
        for _ in range(_ATTEMPTS):
            hashed, inserted = self._inserted(messages, nonce)
            run(conn, self._insert, inserted)
            run(conn, self._withdraw_finished, {"ids": ids})
            found = {row[0]: row for row in fetch(conn, self._look, {"ids": ids, "nonce": nonce})}
            if all(message.id in found for message in messages):
                # Of two with one key and other arguments the first counts, whichever row was stored: the refusal of
                # the other undoes the append.
                first = {message.id: message.fingerprint for message in reversed(messages)}
                return hashed, [_outcome(message, found[message.id], first[message.id]) for message in messages]
            self._hashing.follow(conn)
        raise StoreUnavailable("a keyed send met its own message's end again and again; the store is misbehaving")

    def _inserted(self, messages: Sequence[NewMessage], nonce: str) -> tuple[Sequence[NewMessage], dict[str, Any]]:
        """The messages in the shards where they go, and the parameters of their insert."""
        number = self._hashing.number
        hashed = self._hashing.hashed(messages, number)
        rows = self._dialect.rows([_row(message) for message in hashed])
        return hashed, {"rows": rows, "nonce": nonce, "shards": str(number)}

    def _overflow(self, conn: Connection, stored: Sequence[NewMessage]) -> list[str]:
        """The ids of those messages, just stored for one entity, that its mailbox has no room for: the last ones."""
        ids = list(dict.fromkeys(message.id for message in stored))
        last = stored[-1]
        pending = self.count(conn, last.address, last.shard, last.lock_key)
        over = max(0, pending - (last.capacity or pending))
        return ids[len(ids) - min(over, len(ids)) :]

    def count(self, conn: Connection, address: Address, shard: ShardId, lock_key: int) -> int:
        """How many messages wait for an entity; index used: message_ready and message_delayed."""
        return int(fetch(conn, self._count, _entity_parameters(address, shard, lock_key))[0][0])

    def pending_ids(self, conn: Connection, ids: Sequence[str]) -> set[str]:
        possible = self._dialect.values([one for one in ids if is_message_id(one)])
        return {row[0] for row in fetch(conn, self._pending_ids, {"ids": possible})}

    def pending(
        self, conn: Connection, address: Address | None, shard: ShardId | None, lock_key: int, limit: int
    ) -> list[PendingMessage]:
        """Pending messages of an entity, of a shard or of all, oldest first."""
        if address is not None and shard is not None:
            rows = fetch(conn, self._show_entity, {**_entity_parameters(address, shard, lock_key), "limit": limit})
        elif shard is not None:
            of_shard = {"shard_group": shard.group, "shard": shard.number, "limit": limit}
            rows = fetch(conn, self._show_shard, of_shard)
        else:
            rows = fetch(conn, self._show_all, {"limit": limit})
        return [_pending(row) for row in rows]


def _row(message: NewMessage) -> dict[str, Any]:
    return {
        "id": message.id,
        "shard_group": message.shard.group,
        "shard": message.shard.number,
        "type": message.address.type,
        "entity_id": message.address.id,
        "lock_key": message.lock_key,
        "operation": message.operation,
        "args": message.args,
        "fingerprint": message.fingerprint,
        "sender": message.sender,
        "reply_to": message.reply_to,
        "deliver_at": message.deliver_at_epoch_s,
        "delay_s": message.delay_s,
        "expires_s": message.expires_s,
        "expires_at": message.expires_at_epoch_s,
    }


def _outcome(message: NewMessage, found: Sequence[Any], first: str) -> AppendOutcome:
    _, fingerprint, ours, _pending = found
    if message.fingerprint != (first if ours else fingerprint):
        return AppendOutcome.CONFLICT
    return AppendOutcome.STORED if ours else AppendOutcome.DUPLICATE


def _entity_parameters(address: Address, shard: ShardId, lock_key: int) -> dict[str, Any]:
    return {
        "shard_group": shard.group,
        "shard": shard.number,
        "lock_key": lock_key,
        "type": address.type,
        "entity_id": address.id,
    }


def _pending(row: Sequence[Any]) -> PendingMessage:
    failure = failure_of_json(row[11]) if row[11] else None
    return PendingMessage(
        row[0],
        Address(row[1], row[2]),
        row[3],
        row[4],
        ShardId(row[5], row[6]),
        row[7],
        row[8],
        row[9],
        row[10],
        failure,
    )
