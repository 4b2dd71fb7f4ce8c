"""The table `message` on the drains' side: which entities of a shard have runnable mail, and what that mail is.

Mail is runnable when it is due and no other message of its entity blocks the mailbox. Finding it in order of `seq`
relies on the index message_ready, delayed mail and retries on message_due; reading it on the primary key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

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


_LOOK_AHEAD = 4


class Candidate(NamedTuple):
    """Runnable mail as it was seen before anything was locked."""

    seq: int
    lock_key: int
    shard: int
    id: str
    crashes: int
    delayed: int


class Candidates(msgspec.Struct, frozen=True):
    """Runnable mail in order of `seq`; whether that is all there is."""

    mail: list[Candidate]
    complete: bool


class ClaimedMail(msgspec.Struct, frozen=True):
    """Mail with its lock keys, the fence of this claim, and whether other drains have notes."""

    mail: list[tuple[int, Mail]]
    fence: int
    others_in_flight: bool


class Mailboxes:
    """Statements that find and read the mail of shards."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        due = f"m.due_at <= {dialect.now_once} AND {_RUNNABLE} ORDER BY m.due_at LIMIT :per_shard"
        ready = f"m.due_at IS NULL AND {_RUNNABLE} ORDER BY m.seq LIMIT :per_shard"
        of_shard = "FROM {message} AS m WHERE m.shard_group = :shard_group AND m.shard = "
        seen = "SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes"
        self._candidates = dialect.sql(
            dialect.per_shard(
                lambda n: (
                    f"SELECT * FROM ({seen}, 1 AS delayed {of_shard}{n} AND {due}) AS d "
                    f"UNION ALL SELECT * FROM ({seen}, 0 {of_shard}{n} AND {ready}) AS r"
                )
            )
        )
        # By primary key, in a statement after the one that locked: a snapshot older than the locks shows done mail.
        self._read = dialect.sql(
            "SELECT m.id, m.rev, m.seq, m.type, m.entity_id, m.operation, {args_text}, m.attempt, m.crashes, m.sender, "
            "m.reply_to, coalesce(m.expires_at <= {now}, false), m.lock_key, "
            "(SELECT count(*) FROM {in_flight} AS f WHERE f.token <> :token), {fence} FROM {message} AS m "
            # Written so that no index of due mail looks tempting: the backlog may be long, the ids are few.
            f"WHERE {{among}} AND coalesce(m.due_at <= {{now}}, true) AND {_RUNNABLE}",
            args_text=dialect.json_text("m.args"),
            now=dialect.now_once,
            fence=dialect.drawn_fence,
            among=dialect.any_of("m.id", "ids"),
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

    def candidates(self, conn: Connection, shards: Sequence[ShardId], limit: int) -> Candidates:
        """Runnable mail of shards of one group; of each shard about as much as makes `limit` in all."""
        per_shard = _share(limit, len(shards))
        numbers = [shard.number for shard in shards]
        values: list[Any] = [numbers] if self._dialect.shards_at_once else numbers
        bound = {"per_shard": per_shard, "shard_group": shards[0].group}
        rows = [row for value in values for row in fetch(conn, self._candidates, {**bound, "shards": value})]
        mail = sorted(map(Candidate._make, rows))
        seen = Counter((one.shard, one.delayed) for one in mail)
        return Candidates(mail, all(count < per_shard for count in seen.values()))

    def read(self, conn: Connection, token: str, ids: Collection[str], names: Mapping[str, str]) -> ClaimedMail:
        """Those messages that are still runnable, in order of `seq`; their entities are claimed."""
        for statement in self._dialect.draw_fence:
            run(conn, statement)
        rows = fetch(conn, self._read, {"token": token, "ids": self._dialect.values(ids)})
        if not rows:
            return ClaimedMail([], 0, False)
        mail = [(row[12], _mail(row, names)) for row in sorted(rows, key=lambda row: row[2])]
        return ClaimedMail(mail, int(rows[0][14]), bool(rows[0][13]))

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
            "INSERT INTO {in_flight} (token, message_ids, noted_at) "
            f"VALUES (:token, :message_ids, {dialect.now}) "
            "ON CONFLICT (token) DO UPDATE SET message_ids = excluded.message_ids, noted_at = excluded.noted_at"
        )
        self.clear_statement = dialect.sql("DELETE FROM {in_flight} WHERE token = :token")
        others = "FROM {in_flight} WHERE token <> :token"
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

    def note(self, conn: Connection, token: str, ids: Collection[str]) -> None:
        """Write down what is about to run."""
        run(conn, self.note_statement, self.note_parameters(token, ids))

    def note_parameters(self, token: str, ids: Collection[str]) -> dict[str, object]:
        return {"token": token, "message_ids": self._dialect.rows(list(ids))}

    def clear(self, conn: Connection, token: str) -> None:
        run(conn, self.clear_statement, {"token": token})

    def suspects(self, conn: Connection, token: str, ids: Collection[str]) -> set[str]:
        """Those of our claimed messages that another drain was running when it lost its claims."""
        noted = set()
        for _, message_ids in fetch(conn, self._others, {"token": token}):
            noted.update(msgspec.json.decode(message_ids))
        return noted & set(ids)

    def count_crash(self, conn: Connection, token: str, suspects: Collection[str]) -> None:
        """Count one crash for each suspect and take it off the dead drains' notes; in the caller's transaction."""
        run(conn, self._lock, {"ids": self._dialect.values(suspects)})
        run(conn, self._count, {"ids": self._dialect.values(suspects)})
        for other, message_ids in fetch(conn, self._others_locked, {"token": token}):
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


def _share(limit: int, shards: int) -> int:
    """How much of each of several shards to look at for `limit` in all; generous, for the claims to come."""
    return max(20, _LOOK_AHEAD * limit // shards)


def _mail(row: Sequence[Any], names: Mapping[str, str]) -> Mail:
    address = Address(names.get(row[3], row[3]), row[4])
    message_id, rev, seq = row[:3]
    operation, args, attempt, crashes, sender, reply_to, expired = row[5:12]
    return Mail(message_id, rev, seq, address, operation, args, attempt, crashes, sender, reply_to, bool(expired))
