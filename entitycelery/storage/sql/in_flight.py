"""The table `in_flight`: what each drain is about to run, so that a message that ends its process is known."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection

import msgspec
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.silence import Said, Silences
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.note_floor import NoteFloor
from entitycelery.storage.sql.statement import fetch, run, transaction

log = logging.getLogger("entitycelery.mailbox")


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
        self._notes = dialect.sql(
            f"SELECT token, session, {noted}, {dialect.to_epoch(dialect.now)} - {noted} FROM {{in_flight}}"
        )
        self._silences = Silences()
        self.clear_statement = dialect.sql("DELETE FROM {in_flight} WHERE token = :token")
        others = "SELECT token, message_ids FROM {in_flight} WHERE token <> :token"
        self._others = dialect.sql(f"{others} AND noted_at >= {{since}}", since=dialect.from_epoch(":since_epoch_s"))
        self._of_tokens = dialect.sql(
            "SELECT token, message_ids FROM {in_flight} WHERE {among}", among=dialect.any_of("token", "tokens")
        )
        self._others_locked = dialect.sql(f"{others} ORDER BY token {dialect.for_update}")
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

    def raise_floor(self, conn: Connection) -> None:
        """Have later claims read past older notes; does something once a second at most."""
        self._floor.raise_when_due(conn)

    def suspects(self, conn: Connection, token: str, ids: Collection[str]) -> set[str]:
        """Those of our claimed messages that another drain was running when it lost its claims."""
        notes = fetch(conn, self._others, {"token": token, "since_epoch_s": self._floor.since_epoch_s})
        older = self._floor.older - {token}
        if older:
            found = fetch(conn, self._of_tokens, {"tokens": self._dialect.values(older)})
            self._floor.forget(older - {row[0] for row in found})
            notes = [*notes, *found]
        noted = {message_id for _, message_ids in notes for message_id in _ids(message_ids)}
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
