"""The table `dead_letter`: messages that were given up on, until somebody retries or discards them.

Each has its reply beside it, so that its key stays known: a retry deletes that reply and stores the message again in
one transaction, a discard leaves it to the retention. Writing letters is part of a turn's commit.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.address import Address, is_unique_name, lock_key, shard_of
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import AppendOutcome, DeadLetter, DeadLetterFilter, NewMessage
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.failure import failure_of_json
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.statement import Row, Statement, fetch, run, transaction
from entitycelery.storage.sql.unique_key import UniqueKeys


class DeadLetters:
    """Statements on dead letters. Lists are sorted in memory: there are as many as people leave unattended."""

    def __init__(self, dialect: Dialect, messages: Messages, unique_keys: UniqueKeys, hashing: Hashing) -> None:
        self._dialect = dialect
        self._messages = messages
        self._unique_keys = unique_keys
        self._hashing = hashing
        among = dialect.any_of("id", "ids")
        # Whoever has this lock decides: of two retries, or a retry and a discard, the second finds nothing.
        self._lock = dialect.sql(
            "SELECT id, seq, shard_group, type, entity_id, operation, {args_text}, fingerprint, sender "
            f"FROM {{dead_letter}} WHERE {among} ORDER BY id {dialect.for_update}",
            args_text=dialect.json_text("args"),
        )
        self._delete_replies = dialect.sql(f"DELETE FROM {{reply}} WHERE {among}")
        self._delete = dialect.sql(f"DELETE FROM {{dead_letter}} WHERE {among}")

    def page(
        self, conn: Connection, wanted: DeadLetterFilter, types: Collection[str] | None, after: int, limit: int
    ) -> list[DeadLetter]:
        """Letters in the order in which they were sent, from behind `seq` `after`; those of `types`, if given."""
        conditions, bound = self._conditions(wanted, types)
        statement = self._select(
            "SELECT id, seq, type, entity_id, operation, {args_text}, sender, attempt, crashes, reason, "
            "{failure_text}, {sent}, {died} FROM {dead_letter}",
            [*conditions, "seq > :after"],
            "ORDER BY seq LIMIT :limit",
        )
        return [_letter(row) for row in fetch(conn, statement, {**bound, "after": after, "limit": limit})]

    def ids(self, conn: Connection, wanted: DeadLetterFilter, types: Collection[str] | None) -> list[str]:
        """The ids of all such letters, in the order in which they were sent."""
        conditions, bound = self._conditions(wanted, types)
        statement = self._select("SELECT id FROM {dead_letter}", conditions, "ORDER BY seq")
        return [row[0] for row in fetch(conn, statement, bound)]

    def retry(self, conn: Connection, ids: Collection[str]) -> list[NewMessage]:
        """Make those letters pending messages again, with their ids and as if never tried; the messages.

        One whose key another message has taken meanwhile, with `unique`, stays a letter.
        """
        with transaction(conn, self._dialect.begin):
            rows = self._free(conn, fetch(conn, self._lock, {"ids": self._dialect.values(ids)}))
            if not rows:
                return []
            # Behind all mail that waits, and among themselves in the old order.
            messages = [self._message(row) for row in sorted(rows, key=lambda row: int(row[1]))]
            found = {"ids": self._dialect.values([message.id for message in messages])}
            run(conn, self._delete_replies, found)
            outcomes = self._messages.append(conn, messages, os.urandom(8).hex())
            if AppendOutcome.CONFLICT in outcomes:
                theirs = messages[outcomes.index(AppendOutcome.CONFLICT)].id
                raise StoreUnavailable(f"another message than the dead letter {theirs} is pending under its id")
            run(conn, self._delete, found)
        return messages

    def discard(self, conn: Connection, ids: Collection[str]) -> list[str]:
        """Delete those letters and leave their replies to the retention; the ids of those that were there."""
        with transaction(conn, self._dialect.begin):
            found = [row[0] for row in fetch(conn, self._lock, {"ids": self._dialect.values(ids)})]
            if found:
                run(conn, self._delete, {"ids": self._dialect.values(found)})
        return found

    def _free(self, conn: Connection, rows: Sequence[Row]) -> Sequence[Row]:
        """Those letters whose keys nobody holds; of several that had one key the last."""
        last: dict[str, int] = {}
        for _, seq, *_, fingerprint, _ in rows:
            if is_unique_name(fingerprint):
                last[fingerprint] = max(seq, last.get(fingerprint, seq))
        taken = self._unique_keys.taken(conn, last)
        return [row for row in rows if row[7] not in taken and last.get(row[7], row[1]) == row[1]]

    def _message(self, row: Sequence[Any]) -> NewMessage:
        message_id, _, group, type_name, entity_id, operation, args, fingerprint, sender = row
        address = Address(type_name, entity_id)
        return NewMessage(
            id=message_id,
            fingerprint=fingerprint,
            # Hashed anew, since the number of shards may have changed since it died.
            shard=shard_of(group, entity_id, self._hashing.number),
            address=address,
            lock_key=lock_key(self._dialect.cluster, address),
            operation=operation,
            args=args,
            keyed=True,
            sender=sender,
        )

    def _select(self, head: str, conditions: Sequence[str], tail: str) -> Statement:
        where = f" WHERE {' AND '.join(conditions)} " if conditions else " "
        dialect = self._dialect
        return dialect.sql(
            head + where + tail,
            args_text=dialect.json_text("args"),
            failure_text=dialect.json_text("failure"),
            sent=dialect.to_epoch("sent_at"),
            died=dialect.to_epoch("died_at"),
        )

    def _conditions(self, wanted: DeadLetterFilter, types: Collection[str] | None) -> tuple[list[str], dict[str, Any]]:
        dialect = self._dialect
        younger = dialect.after("CAST(:younger_than_s AS double precision)")
        older = dialect.after("CAST(:older_than_s AS double precision)")
        possible: list[tuple[str, str, Any]] = [
            ("ids", dialect.any_of("id", "ids"), None if wanted.ids is None else dialect.values(wanted.ids)),
            ("types", dialect.any_of("type", "types"), None if types is None else dialect.values(types)),
            ("entity_id", "entity_id = :entity_id", wanted.entity_id),
            ("operation", "operation = :operation", wanted.operation),
            ("reason", "reason = :reason", wanted.reason),
            ("older_than_s", f"died_at <= {older}", None if wanted.older_than_s is None else -wanted.older_than_s),
            (
                "younger_than_s",
                f"died_at > {younger}",
                None if wanted.younger_than_s is None else -wanted.younger_than_s,
            ),
        ]
        given = [(name, condition, value) for name, condition, value in possible if value is not None]
        return [condition for _, condition, _ in given], {name: value for name, _, value in given}


def _letter(row: Sequence[Any]) -> DeadLetter:
    message_id, seq, type_name, entity_id, operation, args, sender, attempts, crashes, reason, failure, sent, died = row
    return DeadLetter(
        id=message_id,
        seq=seq,
        address=Address(type_name, entity_id),
        operation=operation,
        args=args,
        sender=sender,
        attempts=attempts,
        crashes=crashes,
        reason=reason,
        failure=failure_of_json(failure),
        sent_at_epoch_s=sent,
        died_at_epoch_s=died,
    )
