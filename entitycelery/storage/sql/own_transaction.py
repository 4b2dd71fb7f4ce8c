"""The transaction of a turn that asked for `self.turn.connection`: the user's SQL commits with the turn, or not at all.

On a connection of its own: the session of the drain's claims stays free for the watch over long turns.
"""

from __future__ import annotations

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from entitycelery.exceptions import ConfigurationError
from entitycelery.message import EntityCommit, Mail, Mailbox
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql.commit import Commits, Refused
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.state import NEVER_STORED, States
from entitycelery.storage.sql.statement import is_contention, rollback, run, store_errors


class OwnTransaction:
    """At most one at a time; see `open_turn`, `commit_turn` and `rollback_turn` of the DrainSession port."""

    def __init__(self, engine: Engine, dialect: Dialect, states: States, commits: Commits) -> None:
        self._engine = engine
        self._dialect = dialect
        self._states = states
        self._commits = commits
        self._conn: Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether a turn's transaction is open."""
        return self._conn is not None

    def open(self, mailbox: Mailbox, mail: Mail) -> Connection | None:
        """Begin it; None if the turn would lose: the message or the state is not as it was read, or held by another."""
        with store_errors("opening a turn's transaction"):
            conn = self._engine.connect()
            try:
                run(conn, self._dialect.begin)
                if not self._is_current(conn, mailbox, mail):
                    rollback(conn)
                    conn.close()
                    return None
                self._dialect.hand_over(conn)
            except BaseException as exc:
                # A pool must not get a connection back with a transaction in it.
                rollback(conn)
                conn.close()
                if isinstance(exc, DBAPIError) and is_contention(exc):
                    return None
                raise
        event.listen(conn, "commit", _refuse_commit)
        event.listen(conn, "rollback", _refuse_rollback)
        self._conn = conn
        return conn

    def _is_current(self, conn: Connection, mailbox: Mailbox, mail: Mail) -> bool:
        # The drain waits meanwhile: whoever holds one of these rows for longer than a second is the faster writer.
        if not self._commits.still_pending(conn, mail):
            return False
        stored = self._states.read(conn, [mailbox.address]).get(mailbox.address, NEVER_STORED)
        return stored.version == mailbox.stored.version

    def commit(self, commit: EntityCommit) -> CommitResult:
        """Write what the turn leaves behind and commit it with the user's SQL; whatever is refused undoes both."""
        conn = self._conn
        assert conn is not None
        with store_errors("committing a turn's transaction"):
            try:
                result = self._commits.write(conn, [commit])
                if result.lost:
                    self.rollback()
                    return result
                # Deferred constraints speak up now, and the turn can still fail for it.
                run(conn, "COMMIT")
            except Refused as exc:
                self.rollback()
                undone = frozenset([commit.address])
                return CommitResult(frozenset(), exc.outcomes, undone=undone, holders=exc.holders)
            except DBAPIError as exc:
                if exc.connection_invalidated:
                    raise
                self.rollback()
                if is_contention(exc):
                    return CommitResult(lost=frozenset([commit.address]), refused={})
                return CommitResult(lost=frozenset(), refused={}, error=exc)
            self._commits.announce(conn, [commit], result.delayed)
        self._taken()
        conn.close()
        return result

    def rollback(self) -> None:
        """Undo it, if it is open."""
        conn = self._taken()
        if conn is not None:
            rollback(conn)
            conn.close()

    def interrupt(self, other: Connection) -> None:
        """Undo it from another connection: its own may be busy with a statement of the user's."""
        conn = self._taken()
        if conn is not None:
            self._dialect.interrupt(conn, other)

    def _taken(self) -> Connection | None:
        # Two threads may want to undo it: the turn's, and the watch's.
        conn, self._conn = self._conn, None
        if conn is not None:
            event.remove(conn, "commit", _refuse_commit)
            event.remove(conn, "rollback", _refuse_rollback)
        return conn


def _refuse_commit(_conn: Connection) -> None:
    raise ConfigurationError("self.turn.connection is committed with the turn: do not commit it")


def _refuse_rollback(_conn: Connection) -> None:
    raise ConfigurationError("self.turn.connection is rolled back when the handler raises: raise instead")
