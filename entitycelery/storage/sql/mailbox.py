"""The table `message` on the drains' side: which entities of a shard have runnable mail, and what that mail is.

Mail is runnable when it is due and no other message of its entity blocks the mailbox. Reading in order of `seq`
relies on the index message_ready, delayed mail and retries on message_due.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy.engine import Connection

from entitycelery.address import Address, ShardId
from entitycelery.message import Mail
from entitycelery.storage.port import ShardMail
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch, run

_RUNNABLE = (
    "NOT EXISTS (SELECT 1 FROM {message} AS b WHERE b.blocking AND b.lock_key = m.lock_key "
    "AND b.type = m.type AND b.entity_id = m.entity_id AND b.id <> m.id)"
)


class Candidates(msgspec.Struct, frozen=True):
    """Entities with runnable mail, by lock key, with how much of it was seen; the last `seq` seen."""

    keys: dict[int, int]
    last_seq: int
    complete: bool


class ClaimedMail(msgspec.Struct, frozen=True):
    """Mail with its lock keys, the fence of this claim, and whether other drains have notes about this shard."""

    mail: list[tuple[int, Mail]]
    fence: int
    others_in_flight: bool


class Mailboxes:
    """Statements that find and read the mail of a shard."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        of_shard = "{message} AS m WHERE m.shard_group = :shard_group AND m.shard = :shard"
        due = f"m.due_at <= {dialect.now_once} AND {_RUNNABLE} ORDER BY m.due_at LIMIT :limit"
        ready = f"m.due_at IS NULL AND m.seq > CAST(:after_seq AS bigint) AND {_RUNNABLE} ORDER BY m.seq LIMIT :limit"
        self._candidates = dialect.sql(
            f"SELECT * FROM (SELECT m.lock_key, m.seq, 1 AS delayed FROM {of_shard} "
            f"AND CAST(:after_seq AS bigint) = 0 AND {due}) AS d "
            f"UNION ALL SELECT * FROM (SELECT m.lock_key, m.seq, 0 FROM {of_shard} AND {ready}) AS r"
        )
        claimed = f"SELECT m.* FROM {of_shard} AND {{claimed}}"
        read_before = f"m.due_at IS NULL AND m.seq <= :last_seq AND {_RUNNABLE} ORDER BY m.seq LIMIT :limit"
        self._read = dialect.sql(
            "SELECT m.id, m.rev, m.seq, m.type, m.entity_id, m.operation, {args_text}, m.attempt, m.crashes, m.sender, "
            "m.reply_to, coalesce(m.expires_at <= {now}, false), m.lock_key, (SELECT count(*) FROM {in_flight} AS f "
            "WHERE f.shard_group = :shard_group AND f.shard = :shard AND f.token <> :token), {fence} "
            f"FROM (SELECT * FROM ({claimed} AND {due}) AS d "
            f"UNION ALL SELECT * FROM ({claimed} AND {read_before}) AS r) AS m ORDER BY m.seq",
            args_text=dialect.json_text("m.args"),
            now=dialect.now_once,
            fence=dialect.drawn_fence,
            claimed=dialect.any_of("m.lock_key", "keys"),
        )
        shards = dialect.rowset("rows", g="text", n="int")
        self._waiting_ready = dialect.sql(self._waiting("sent_at", "due_at IS NULL", "seq"), shards=shards)
        due_now = f"due_at <= {dialect.now_once}"
        self._waiting_due = dialect.sql(self._waiting("due_at", due_now, "due_at"), shards=shards)

    def _waiting(self, since: str, kind: str, order: str) -> str:
        # One probe of one index per shard; mail behind a blocking message does not count as waiting.
        waited_s = f"{self._dialect.to_epoch(self._dialect.now)} - {self._dialect.to_epoch(f'm.{since}')}"
        return (
            f"SELECT r.g, r.n, (SELECT {waited_s} FROM {{message}} AS m "
            f"WHERE m.shard_group = r.g AND m.shard = r.n AND m.{kind} AND {_RUNNABLE} ORDER BY m.{order} LIMIT 1) "
            "FROM {shards}"
        )

    def candidates(self, conn: Connection, shard: ShardId, after_seq: int, limit: int) -> Candidates:
        """Entities of the shard with runnable mail, oldest mail first; ready mail from `after_seq` on."""
        parameters = {"shard_group": shard.group, "shard": shard.number, "limit": limit, "after_seq": after_seq}
        keys: dict[int, int] = {}
        last_seq, ready = after_seq, 0
        for key, seq, delayed in fetch(conn, self._candidates, parameters):
            keys[key] = keys.get(key, 0) + 1
            if not delayed:
                last_seq, ready = max(last_seq, seq), ready + 1
        return Candidates(keys, last_seq, ready < limit)

    def read(
        self, conn: Connection, shard: ShardId, token: str, keys: Collection[int], last_seq: int, limit: int
    ) -> ClaimedMail:
        """The runnable mail of claimed entities, in order of `seq`."""
        parameters = {
            "shard_group": shard.group,
            "shard": shard.number,
            "token": token,
            "keys": self._dialect.values(keys),
            "last_seq": last_seq,
            "limit": limit,
        }
        for statement in self._dialect.draw_fence:
            run(conn, statement)
        rows = fetch(conn, self._read, parameters)
        if not rows:
            return ClaimedMail([], 0, False)
        return ClaimedMail([(row[12], _mail(row)) for row in rows], int(rows[0][14]), bool(rows[0][13]))

    def waiting(self, conn: Connection, shards: Sequence[ShardId], *, delayed: bool) -> list[ShardMail]:
        """Shards with runnable mail and how long its oldest has waited; ready mail, or delayed mail that is due."""
        statement = self._waiting_due if delayed else self._waiting_ready
        rows = self._dialect.rows([{"g": shard.group, "n": shard.number} for shard in shards])
        found = fetch(conn, statement, {"rows": rows})
        return [
            ShardMail(ShardId(group, number), waited_s) for group, number, waited_s in found if waited_s is not None
        ]


class InFlight:
    """The table `in_flight`: what each drain is about to run, so that a message that kills its process is known."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.note_statement = dialect.sql(
            "INSERT INTO {in_flight} (token, shard_group, shard, message_ids, noted_at) "
            f"VALUES (:token, :shard_group, :shard, :message_ids, {dialect.now}) "
            "ON CONFLICT (token) DO UPDATE SET message_ids = excluded.message_ids, noted_at = excluded.noted_at"
        )
        self.clear_statement = dialect.sql("DELETE FROM {in_flight} WHERE token = :token")
        others = "FROM {in_flight} WHERE shard_group = :shard_group AND shard = :shard AND token <> :token"
        self._others = dialect.sql(f"SELECT token, message_ids {others}")
        self._others_locked = dialect.sql(f"SELECT token, message_ids {others} ORDER BY token {dialect.for_update}")
        self._replace = dialect.sql("UPDATE {in_flight} SET message_ids = :message_ids WHERE token = :token")
        self._count = dialect.sql(
            "UPDATE {message} SET crashes = crashes + 1, rev = rev + 1 WHERE {among}",
            among=dialect.any_of("id", "ids"),
        )
        self._lock = dialect.sql(
            f"SELECT id FROM {{message}} WHERE {{among}} ORDER BY id {dialect.for_update}",
            among=dialect.any_of("id", "ids"),
        )
        self._purge = dialect.sql(
            f"DELETE FROM {{in_flight}} WHERE {dialect.to_epoch('noted_at')} < "
            f"{dialect.to_epoch(dialect.now)} - :older_than_s"
        )

    def note(self, conn: Connection, token: str, shard: ShardId, ids: Collection[str]) -> None:
        """Write down what is about to run."""
        run(conn, self.note_statement, self.note_parameters(token, shard, ids))

    def note_parameters(self, token: str, shard: ShardId, ids: Collection[str]) -> dict[str, object]:
        return {**_of(shard, token), "message_ids": self._dialect.rows(list(ids))}

    def clear(self, conn: Connection, token: str) -> None:
        run(conn, self.clear_statement, {"token": token})

    def suspects(self, conn: Connection, token: str, shard: ShardId, ids: Collection[str]) -> set[str]:
        """Those of our claimed messages that another drain was running when it lost its claims."""
        noted = set()
        for _, message_ids in fetch(conn, self._others, _of(shard, token)):
            noted.update(msgspec.json.decode(message_ids))
        return noted & set(ids)

    def count_crash(self, conn: Connection, token: str, shard: ShardId, suspects: Collection[str]) -> None:
        """Count one crash for each suspect and take it off the dead drains' notes; in the caller's transaction."""
        run(conn, self._lock, {"ids": self._dialect.values(suspects)})
        run(conn, self._count, {"ids": self._dialect.values(suspects)})
        for other, message_ids in fetch(conn, self._others_locked, _of(shard, token)):
            noted = msgspec.json.decode(message_ids)
            left = [message_id for message_id in noted if message_id not in suspects]
            if len(left) == len(noted):
                continue
            if left:
                run(conn, self._replace, {"token": other, "message_ids": self._dialect.rows(left)})
            else:
                run(conn, self.clear_statement, {"token": other})

    def purge(self, conn: Connection, older_than_s: float) -> int:
        """Remove notes that nobody will come back to."""
        return run(conn, self._purge, {"older_than_s": older_than_s})


def _of(shard: ShardId, token: str) -> dict[str, object]:
    return {"shard_group": shard.group, "shard": shard.number, "token": token}


def _mail(row: Sequence[Any]) -> Mail:
    address = Address(row[3], row[4])
    message_id, rev, seq = row[:3]
    operation, args, attempt, crashes, sender, reply_to, expired = row[5:12]
    return Mail(message_id, rev, seq, address, operation, args, attempt, crashes, sender, reply_to, bool(expired))
