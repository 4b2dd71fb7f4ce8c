"""The table `in_flight`: what each drain is about to run, so that a message that ends its process is known."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

import msgspec
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.silence import Said, Silences
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.note_floor import NoteFloor
from entitycelery.storage.sql.statement import fetch, run, transaction

log = logging.getLogger("entitycelery.mailbox")


class _Note(NamedTuple):
    token: str
    message_ids: str
    session: int | None
    noted_epoch_s: float
    age_s: float


class InFlight:
    """Statements about the notes of drains."""

    def __init__(self, dialect: Dialect, floor: NoteFloor) -> None:
        self._dialect = dialect
        self._floor = floor
        self.note_statement = dialect.sql(
            "INSERT INTO {in_flight} (token, message_ids, noted_at, session) "
            f"VALUES (:token, :message_ids, {dialect.now}, {dialect.session_id}) "
            "ON CONFLICT (token) DO UPDATE SET message_ids = excluded.message_ids, noted_at = excluded.noted_at"
        )
        self._renew = dialect.sql(f"UPDATE {{in_flight}} SET noted_at = {dialect.now} WHERE token = :token")
        noted = dialect.to_epoch("noted_at")
        notes = (
            f"SELECT token, message_ids, session, {noted}, {dialect.to_epoch(dialect.now)} - {noted} FROM {{in_flight}}"
        )
        self._since = dialect.sql(f"{notes} WHERE noted_at >= {dialect.from_epoch(':since_epoch_s')}")
        self._of_tokens = dialect.sql(f"{notes} WHERE {{among}}", among=dialect.any_of("token", "tokens"))
        self._silences = Silences()
        self.clear_statement = dialect.sql("DELETE FROM {in_flight} WHERE token = :token")
        self._others_locked = dialect.sql(
            f"SELECT token, message_ids FROM {{in_flight}} WHERE token <> :token ORDER BY token {dialect.for_update}"
        )
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
            "DELETE FROM {in_flight} WHERE noted_at < (SELECT {instant})",
            instant=dialect.after("CAST(:from_now_s AS double precision)"),
        )

    def _notes(self, conn: Connection) -> list[_Note]:
        """The notes of all drains; what is not known to be there is found a minute later (see note_floor.py)."""
        known = self._floor.known
        rows = fetch(conn, self._since, {"since_epoch_s": known.since_epoch_s})
        if known.older:
            older = fetch(conn, self._of_tokens, {"tokens": self._dialect.values(known.older)})
            self._floor.forget(known.older.difference(row[0] for row in older))
            rows = [*rows, *older]
        # One that has said since that it lives is found twice.
        return list({row[0]: _Note(row[0], row[1], row[2], float(row[3]), float(row[4])) for row in rows}.values())

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
        notes = self._notes(conn)
        silent_s = self._silences.heard({n.token: Said(n.noted_epoch_s, n.age_s) for n in notes}, looked_s)
        return [(n.token, n.session, n.noted_epoch_s) for n in notes if silent_s[n.token] > for_s]

    def clear(self, conn: Connection, token: str) -> None:
        run(conn, self.clear_statement, {"token": token})

    def raise_floor(self, conn: Connection) -> None:
        """Have later claims read past older notes; does something once a second at most."""
        self._floor.raise_when_due(conn)

    def suspects(self, conn: Connection, token: str, ids: Collection[str]) -> set[str]:
        """Those of our claimed messages that another drain was running when it lost its claims."""
        others = (note for note in self._notes(conn) if note.token != token)
        return {message_id for note in others for message_id in _ids(note.message_ids)} & set(ids)

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
        notes = [(note.token, note.message_ids, set(_ids(note.message_ids))) for note in self._notes(conn)]
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
        return run(conn, self._purge, {"from_now_s": -older_than_s})


def _ids(message_ids: str) -> list[str]:
    """The ids of a note; none of one that no drain wrote, which stays until it is purged."""
    try:
        return msgspec.json.decode(message_ids, type=list[str])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        log.warning("a note of what runs cannot be read: %.80r", message_ids)
        return []
