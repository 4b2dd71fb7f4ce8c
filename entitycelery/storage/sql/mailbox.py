"""The table `message` on the drains' side: which entities of a shard have runnable mail, and what that mail is.

Mail is runnable when it is due and no other message of its entity blocks the mailbox. Finding it in order of `seq`
relies on the index message_ready, delayed mail and retries on message_due; reading it on the primary key. When delayed
mail is due is for moment.py to say.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.address import Address, ShardId
from entitycelery.message import Mail
from entitycelery.silence import Said, Silences
from entitycelery.storage.port import ShardMail
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.floor import Floors
from entitycelery.storage.sql.statement import fetch, run, transaction

log = logging.getLogger("entitycelery.mailbox")

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

    def __init__(self, dialect: Dialect, floors: Floors) -> None:
        self._dialect = dialect
        self._floors = floors
        due = f"m.due_at <= {dialect.now_once} AND {RUNNABLE} ORDER BY m.due_at LIMIT :per_shard"
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
            "(SELECT count(*) FROM {in_flight} AS f WHERE f.token <> :token), {fence}, {unknown_since}, {now_epoch} "
            "FROM {message} AS m "
            # Written so that no index of due mail looks tempting: the backlog may be long, the ids are few.
            f"WHERE {{among}} AND coalesce(m.due_at <= {{now}}, true) AND {RUNNABLE}",
            args_text=dialect.json_text("m.args"),
            now=dialect.now_once,
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
        bound = {"per_shard": per_shard, "shard_group": shards[0].group, "floors": self._floors.of(shards)}
        rows = [row for value in values for row in fetch(conn, self._candidates, {**bound, "shards": value})]
        mail = sorted(map(Candidate._make, rows))
        seen = Counter((one.shard, one.delayed) for one in mail)
        return Candidates(mail, all(count < per_shard for count in seen.values()))

    def raise_floors(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Have later looks at these shards begin behind what is done; does something once a second at most."""
        self._floors.raise_when_due(conn, shards)

    def look_below_floors(self, conn: Connection, shards: Sequence[ShardId]) -> bool:
        """Whether there is mail below where looks at these shards begin; looks for it once a minute at most."""
        return self._floors.search_when_due(conn, shards)

    def read(self, conn: Connection, token: str, ids: Collection[str], names: Mapping[str, str]) -> ClaimedMail:
        """Those messages that are still runnable, in order of `seq`; their entities are claimed."""
        for statement in self._dialect.draw_fence:
            run(conn, statement)
        rows = fetch(conn, self._read, {"token": token, "ids": self._dialect.values(ids)})
        if not rows:
            return ClaimedMail([], 0, False)
        mail = [(row[12], _mail(row, names)) for row in sorted(rows, key=lambda row: row[2])]
        return ClaimedMail(mail, int(rows[0][14]), bool(rows[0][13]))

    def waiting(self, conn: Connection, shards: Sequence[ShardId]) -> list[ShardMail]:
        """Shards with runnable mail that was due at once, and how long its oldest has waited."""
        floors = zip(shards, self._floors.of(shards), strict=True)
        rows = self._dialect.rows([{"g": shard.group, "n": shard.number, "floor": floor} for shard, floor in floors])
        found = fetch(conn, self._waiting, {"rows": rows})
        return [
            ShardMail(ShardId(group, number), waited_s) for group, number, waited_s in found if waited_s is not None
        ]


class InFlight:
    """The table `in_flight`: what each drain is about to run, so that a message that kills its process is known."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.note_statement = dialect.sql(
            "INSERT INTO {in_flight} (token, message_ids, noted_at, session) "
            f"VALUES (:token, :message_ids, {dialect.now}, {dialect.session_id}) "
            "ON CONFLICT (token) DO UPDATE SET message_ids = excluded.message_ids, noted_at = excluded.noted_at"
        )
        self._renew = dialect.sql(f"UPDATE {{in_flight}} SET noted_at = {dialect.now} WHERE token = :token")
        noted = dialect.to_epoch("noted_at")
        self._notes = dialect.sql(
            f"SELECT token, session, {noted}, {dialect.to_epoch(dialect.now)} - {noted} FROM {{in_flight}}"
        )
        self._silences = Silences()
        self.clear_statement = dialect.sql("DELETE FROM {in_flight} WHERE token = :token")
        others = "FROM {in_flight} WHERE token <> :token"
        self._others = dialect.sql(f"SELECT token, message_ids {others}")
        self._others_locked = dialect.sql(f"SELECT token, message_ids {others} ORDER BY token {dialect.for_update}")
        self._all = dialect.sql("SELECT token, message_ids FROM {in_flight}")
        self._remove = dialect.sql("DELETE FROM {in_flight} WHERE token = :token AND message_ids = :message_ids")
        self._pending = dialect.sql("SELECT id FROM {message} WHERE {among}", among=dialect.any_of("id", "ids"))
        self._replace = dialect.sql("UPDATE {in_flight} SET message_ids = :message_ids WHERE token = :token")
        self._count = dialect.sql(
            "UPDATE {message} SET crashes = crashes + 1, rev = rev + 1 WHERE {among}",
            among=dialect.any_of("id", "ids"),
        )
        self._uncount = dialect.sql(
            "UPDATE {message} SET crashes = crashes - 1 WHERE {among} AND crashes > 0",
            among=dialect.any_of("id", "ids"),
        )
        self._own_locked = dialect.sql(
            f"SELECT message_ids FROM {{in_flight}} WHERE token = :token {dialect.for_update}"
        )
        self._withdrawn: deque[tuple[str, frozenset[str]]] = deque()
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

    def renew(self, conn: Connection, token: str) -> None:
        """Say that this drain lives, though a turn of it takes long."""
        run(conn, self._renew, {"token": token})

    def silent(self, conn: Connection, for_s: float) -> list[tuple[str, int | None, float]]:
        """Drains that have said nothing for so long: token, database session, and when they said something last."""
        looked_s = time.monotonic()
        notes = [(token, session, float(at), float(age)) for token, session, at, age in fetch(conn, self._notes)]
        said = {token: Said(at, age_s) for token, _, at, age_s in notes}
        silent_s = self._silences.heard(said, looked_s)
        return [(token, session, at) for token, session, at, _ in notes if silent_s[token] > for_s]

    def clear(self, conn: Connection, token: str) -> None:
        run(conn, self.clear_statement, {"token": token})

    def suspects(self, conn: Connection, token: str, ids: Collection[str]) -> set[str]:
        """Those of our claimed messages that another drain was running when it lost its claims."""
        noted = set()
        for _, message_ids in fetch(conn, self._others, {"token": token}):
            noted.update(_ids(message_ids))
        return noted & set(ids)

    def count_crash(self, conn: Connection, token: str, suspects: Collection[str]) -> None:
        """Count one crash for each suspect and take it off the dead drains' notes; in the caller's transaction."""
        run(conn, self._lock, {"ids": self._dialect.values(suspects)})
        run(conn, self._count, {"ids": self._dialect.values(suspects)})
        for other, message_ids in fetch(conn, self._others_locked, {"token": token}):
            noted = _ids(message_ids)
            left = [message_id for message_id in noted if message_id not in suspects]
            if len(left) == len(noted):
                continue
            if left:
                run(conn, self._replace, {"token": other, "message_ids": self._dialect.rows(left)})
            else:
                run(conn, self.clear_statement, {"token": other})

    def withdraw(self, conn: Connection, token: str, ids: Collection[str]) -> None:
        """Take back the note of a drain that lost its session but not its process: none of this was a crash."""
        self._withdrawn.append((token, frozenset(ids)))
        self.settle(conn)

    def settle(self, conn: Connection) -> None:
        """Carry out what was withdrawn here; what the database does not take now is tried again next time."""
        while self._withdrawn:
            token, ids = one = self._withdrawn.popleft()
            try:
                with transaction(conn, self._dialect.begin):
                    self._uncount_crash(conn, token, ids)
            except DBAPIError:
                conn.invalidate()
                self._withdrawn.append(one)
                return

    def _uncount_crash(self, conn: Connection, token: str, ids: Collection[str]) -> None:
        # Locked in the order of those who count. Whoever counted a message has taken it off the note.
        run(conn, self._lock, {"ids": self._dialect.values(ids)})
        noted = {message_id for row in fetch(conn, self._own_locked, {"token": token}) for message_id in _ids(row[0])}
        run(conn, self._uncount, {"ids": self._dialect.values([one for one in ids if one not in noted])})
        self.clear(conn, token)

    def remove_done(self, conn: Connection) -> None:
        """Remove notes none of whose messages is pending: their drains died after a commit that was not their last."""
        notes = [(token, ids, set(_ids(ids))) for token, ids in fetch(conn, self._all)]
        if not notes:
            return
        noted = set().union(*(ids for _, _, ids in notes))
        pending = {row[0] for row in fetch(conn, self._pending, {"ids": self._dialect.values(noted)})}
        for token, as_read, ids in notes:
            if ids and not ids & pending:
                # As it was read: the drain may live, and note its next batch meanwhile.
                run(conn, self._remove, {"token": token, "message_ids": as_read})

    def purge(self, conn: Connection, older_than_s: float) -> int:
        """Remove notes that nobody will come back to."""
        return run(conn, self._purge, {"older_than_s": older_than_s})


def _ids(message_ids: str) -> list[str]:
    """The ids of a note; none of one that no drain wrote, which stays until it is purged."""
    try:
        return msgspec.json.decode(message_ids, type=list[str])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        log.warning("a note of what runs cannot be read: %.80r", message_ids)
        return []


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
