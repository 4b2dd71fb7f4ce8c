"""The table `message` on the drains' side: which entities of a shard have runnable mail, and what that mail is.

Mail is runnable when it is due and no other message of its entity blocks the mailbox. Finding it in order of `seq`
relies on the index message_ready, delayed mail and retries on message_due; reading it on the primary key. When delayed
mail is due is for moment.py to say.
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
from entitycelery.storage.sql.due_floor import DueFloors
from entitycelery.storage.sql.floor import Floors
from entitycelery.storage.sql.note_floor import NoteFloor
from entitycelery.storage.sql.statement import fetch, run

RUNNABLE = (
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

    def __init__(self, dialect: Dialect, floors: Floors, due_floors: DueFloors, notes: NoteFloor) -> None:
        self._dialect = dialect
        self._floors = floors
        self._due_floors = due_floors
        self._notes = notes
        is_due = f"m.due_at >= {dialect.from_epoch(':due_since_epoch_s')} AND m.due_at <= {dialect.now_once}"
        due = f"{is_due} AND {RUNNABLE} ORDER BY m.due_at LIMIT :per_shard"
        ready = f"m.due_at IS NULL AND {RUNNABLE} ORDER BY m.seq LIMIT :per_shard"
        of_shard = "FROM {message} AS m WHERE m.shard_group = :shard_group AND m.shard = "
        seen = "SELECT m.seq, m.lock_key, m.shard, m.id, m.crashes"
        self._candidates = dialect.sql(
            dialect.per_shard(
                lambda n, floor: (
                    f"SELECT * FROM ({seen}, 1 AS delayed {of_shard}{n} AND {due}) AS d "
                    f"UNION ALL SELECT * FROM ({seen}, 0 {of_shard}{n} AND m.seq >= {floor} AND {ready}) AS r"
                )
            )
        )
        # By primary key, in a statement after the one that locked: a snapshot older than the locks shows done mail.
        self._read = dialect.sql(
            "SELECT m.id, m.rev, m.seq, m.type, m.entity_id, m.operation, {args_text}, m.attempt, m.crashes, m.sender, "
            "m.reply_to, coalesce(m.expires_at <= {now}, false), m.lock_key, "
            "(SELECT count(*) FROM {in_flight} AS f WHERE f.noted_at >= {since} AND f.token <> :token), "
            "{fence}, {unknown_since}, {now_epoch} "
            "FROM {message} AS m "
            # Written so that no index of due mail looks tempting: the backlog may be long, the ids are few.
            f"WHERE {{among}} AND coalesce(m.due_at <= {{now}}, true) AND {RUNNABLE}",
            args_text=dialect.json_text("m.args"),
            now=dialect.now_once,
            since=dialect.from_epoch(":since_epoch_s"),
            fence=dialect.drawn_fence,
            unknown_since=dialect.json_field("m.last_failure", "unknown_since_epoch_s"),
            now_epoch=dialect.to_epoch(dialect.now_once),
            among=dialect.any_of("m.id", "ids"),
        )
        # One probe of one index per shard; mail behind a blocking message does not count as waiting.
        waited_s = f"{dialect.to_epoch(dialect.now)} - {dialect.to_epoch('m.sent_at')}"
        self._waiting = dialect.sql(
            f"SELECT r.g, r.n, (SELECT {waited_s} FROM {{message}} AS m WHERE m.shard_group = r.g AND m.shard = r.n "
            f"AND m.seq >= r.floor AND m.due_at IS NULL AND {RUNNABLE} ORDER BY m.seq LIMIT 1) FROM {{shards}}",
            shards=dialect.rowset("rows", g="text", n="int", floor="int"),
        )

    def candidates(self, conn: Connection, shards: Sequence[ShardId], limit: int) -> Candidates:
        """Runnable mail of shards of one group; of each shard about as much as makes `limit` in all."""
        per_shard = _share(limit, len(shards))
        numbers = [shard.number for shard in shards]
        values: list[Any] = [numbers] if self._dialect.shards_at_once else numbers
        bound = {
            "per_shard": per_shard,
            "shard_group": shards[0].group,
            "floors": self._floors.of(shards),
            "due_since_epoch_s": self._due_floors.since_epoch_s(shards),
        }
        rows = [row for value in values for row in fetch(conn, self._candidates, {**bound, "shards": value})]
        mail = sorted(map(Candidate._make, rows))
        seen = Counter((one.shard, one.delayed) for one in mail)
        return Candidates(mail, all(count < per_shard for count in seen.values()))

    def raise_floors(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Have later looks at these shards begin behind what is done; does something once a second at most."""
        self._floors.raise_when_due(conn, shards)
        self._due_floors.raise_when_due(conn, shards)

    def look_below_floors(self, conn: Connection, shards: Sequence[ShardId]) -> bool:
        """Whether there is mail below where looks at these shards begin; looks for it now and then."""
        found = self._floors.search_when_due(conn, shards)
        return self._due_floors.search_when_due(conn, shards) or found

    def read(self, conn: Connection, token: str, ids: Collection[str], names: Mapping[str, str]) -> ClaimedMail:
        """Those messages that are still runnable, in order of `seq`; their entities are claimed."""
        for statement in self._dialect.draw_fence:
            run(conn, statement)
        notes = self._notes.known
        bound = {"token": token, "since_epoch_s": notes.since_epoch_s, "ids": self._dialect.values(ids)}
        rows = fetch(conn, self._read, bound)
        if not rows:
            return ClaimedMail([], 0, False)
        mail = [(row[12], _mail(row, names)) for row in sorted(rows, key=lambda row: row[2])]
        return ClaimedMail(mail, int(rows[0][14]), bool(rows[0][13] or notes.older - {token}))

    def waiting(self, conn: Connection, shards: Sequence[ShardId]) -> list[ShardMail]:
        """Shards with runnable mail that was due at once, and how long its oldest has waited."""
        floors = zip(shards, self._floors.of(shards), strict=True)
        rows = self._dialect.rows([{"g": shard.group, "n": shard.number, "floor": floor} for shard, floor in floors])
        found = fetch(conn, self._waiting, {"rows": rows})
        return [
            ShardMail(ShardId(group, number), waited_s) for group, number, waited_s in found if waited_s is not None
        ]


def _share(limit: int, shards: int) -> int:
    """How much of each of several shards to look at for `limit` in all; generous, for the claims to come."""
    return max(20, _LOOK_AHEAD * limit // shards)


def _mail(row: Sequence[Any], names: Mapping[str, str]) -> Mail:
    if not (type(row[3]) is type(row[4]) is str and type(row[7]) is type(row[8]) is int):
        row = _typed(row)
    address = Address(names.get(row[3], row[3]), row[4])
    message_id, rev, seq = row[:3]
    operation, args, attempt, crashes, sender, reply_to, expired = row[5:12]
    unknown_since = _epoch_s(row[15])
    return Mail(
        *(message_id, rev, seq, address, operation, args, attempt, crashes, sender, reply_to, bool(expired)),
        read_at_epoch_s=row[16],
        unknown_since_epoch_s=unknown_since,
    )


def _epoch_s(value: object) -> float | None:
    """An instant out of a JSON column; None where there is none."""
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _typed(row: Sequence[Any]) -> Sequence[Any]:
    # SQLite keeps in a column whatever somebody writes there: then type and id are text, and counts begin anew.
    type_name, entity_id, operation = (part if isinstance(part, str) else repr(part) for part in row[3:6])
    attempt, crashes = (count if isinstance(count, int) else 0 for count in row[7:9])
    return [*row[:3], type_name, entity_id, operation, row[6], attempt, crashes, *row[9:]]
