"""The SQL store: composes the nouns over one dialect and hands out connections.

Knows about processes: engines are made anew after a fork, without touching the parent's sockets.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.orm import Session

from entitycelery.address import Address, ShardId, lock_key
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.message import (
    AppendOutcome,
    Change,
    DeadLetter,
    DeadLetterFilter,
    NewMessage,
    PendingMessage,
    Reply,
    StoredKind,
    StoredState,
    StoreStats,
)
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import NO_ALIASES, MailboxStatus, ReplyWaiter, ShardMail
from entitycelery.storage.sql.census import Census
from entitycelery.storage.sql.change import Changes
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.dead_letter import DeadLetters
from entitycelery.storage.sql.dialects.base import Dialect, Role
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.dialects.sqlite import SQLite
from entitycelery.storage.sql.floor import Floors
from entitycelery.storage.sql.mailbox import InFlight, Mailboxes
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.migration import Schema
from entitycelery.storage.sql.reply import Replies
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.state import NEVER_STORED, States
from entitycelery.storage.sql.statement import rollback, run, store_errors
from entitycelery.storage.sql.statistics import Statistics
from entitycelery.storage.sql.url import shown

DIALECTS: dict[str, type[PostgreSQL] | type[SQLite]] = {
    "postgresql+psycopg2": PostgreSQL,
    "sqlite+pysqlite": SQLite,
}

_REFUSALS = (AppendOutcome.CONFLICT, AppendOutcome.FULL)


class SqlStore:
    """The Store of one cluster on PostgreSQL or SQLite: see the port for what each method promises."""

    def __init__(self, url: URL, *, cluster: str, shards_per_group: int, connections: int, timeout_s: float) -> None:
        self.url = url
        self.cluster = cluster
        self._connections = connections
        self._timeout_s = timeout_s
        self.dialect: Dialect = DIALECTS[url.drivername](url, cluster)
        self._shards = shards_per_group
        self._messages = Messages(self.dialect, shards_per_group)
        self._floors = Floors(self.dialect)
        self._mailboxes = Mailboxes(self.dialect, self._floors)
        self._in_flight = InFlight(self.dialect)
        self._states = States(self.dialect)
        self._replies = Replies(self.dialect)
        self._commits = Commits(self.dialect, self._messages, self._states, self._replies, self._in_flight)
        self._changes = Changes(self.dialect)
        self._dead_letters = DeadLetters(self.dialect, self._messages, shards_per_group)
        self._statistics = Statistics(self.dialect)
        self._census = Census(self.dialect)
        self._schema = Schema(self.dialect, shards_per_group)
        self._engines: dict[Role, Engine] = {}
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._locks = self.dialect.locks(self._engine("client"))

    def __repr__(self) -> str:
        return f"<SqlStore {shown(self.url)} cluster {self.cluster}>"

    # Senders

    def append(
        self, messages: Sequence[NewMessage], *, nonce: str, again: bool = False, connection: Any = None
    ) -> list[AppendOutcome]:
        if connection is not None:
            return self._append_for_caller(_sqlalchemy_connection(connection), messages, nonce)
        with self._connection("storing messages") as conn:
            if len(messages) == 1 and not (again or messages[0].keyed or messages[0].capacity is not None):
                return self._messages.append(conn, messages, nonce)
            with _all_or_nothing(conn, self.dialect.begin) as undo:
                outcomes = self._messages.append(conn, messages, nonce, again=again)
                if any(outcome in _REFUSALS for outcome in outcomes):
                    undo()
            return outcomes

    def _append_for_caller(self, conn: Connection, messages: Sequence[NewMessage], nonce: str) -> list[AppendOutcome]:
        with store_errors("storing messages on the caller's connection"):
            self.dialect.check_caller(conn, keyed=any(m.keyed for m in messages))
            with conn.begin_nested() as savepoint:
                outcomes = self._messages.append(conn, messages, nonce)
                if any(outcome in _REFUSALS for outcome in outcomes):
                    savepoint.rollback()
                    return outcomes
            self.dialect.after_caller_commit(conn, sorted({m.shard for m in messages}))
        return outcomes

    def append_and_ask(self, message: NewMessage, *, nonce: str) -> bool:
        with self._connection("storing a message") as conn:
            question = self._locks.question(message.shard)
            if question is None:
                self._messages.append(conn, [message], nonce)
                return bool(self._locks.attended(conn, [message.shard]))
            return self._messages.append_and_ask(conn, message, nonce, question)

    def attended(self, shards: Sequence[ShardId]) -> set[ShardId]:
        with self._connection("asking for attention") as conn:
            return self._locks.attended(conn, shards)

    # Replies

    def replies(self, ids: Sequence[str]) -> dict[str, Reply]:
        with self._connection("reading replies") as conn:
            return self._replies.read(conn, ids)

    def pending_ids(self, ids: Sequence[str]) -> set[str]:
        with self._connection("looking for messages") as conn:
            return self._messages.pending_ids(conn, ids)

    @contextmanager
    def waiter(self) -> Iterator[ReplyWaiter]:
        with ExitStack() as stack:
            waiter: ReplyWaiter
            try:
                with store_errors("waiting for a reply"):
                    waiter = stack.enter_context(self.dialect.waiter(lambda: self._engine("listen")))
            except StoreUnavailable:
                # Every listening connection is in use, or the database is away: look now and then instead.
                waiter = PollingWaiter(0.005, 0.5)
            yield waiter

    def purge_replies(self, older_than_s: float, limit: int) -> int:
        with self._connection("purging replies") as conn:
            self._in_flight.purge(conn, max(older_than_s, 86_400.0))
            return self._replies.purge(conn, older_than_s, limit)

    # Reading

    def state(self, address: Address) -> StoredState:
        with self._connection("reading a state") as conn:
            return self._states.read(conn, [address]).get(address, NEVER_STORED)

    def states(self, type_name: str | None, after: Address | None, limit: int) -> list[tuple[Address, StoredState]]:
        with self._connection("reading states") as conn:
            return self._states.list(conn, type_name, after, limit)

    def mailbox_status(self, address: Address, shard: ShardId) -> MailboxStatus:
        key = lock_key(self.cluster, address)
        with self._connection("reading a mailbox") as conn:
            return MailboxStatus(self._messages.count(conn, address, shard, key), self._locks.is_claimed(conn, key))

    def pending(self, address: Address | None, shard: ShardId | None, limit: int) -> list[PendingMessage]:
        key = lock_key(self.cluster, address) if address else 0
        with self._connection("reading messages") as conn:
            return self._messages.pending(conn, address, shard, key, limit)

    def census(self) -> list[StoredKind]:
        with self._connection("counting what is stored") as conn:
            return self._census.take(conn)

    # Control

    def cancel(self, message_id: str) -> tuple[Change, ShardId | None]:
        with self._connection("cancelling a message") as conn:
            return self._changes.cancel(conn, message_id)

    def reschedule(
        self, message_id: str, *, delay_s: float | None, deliver_at_epoch_s: float | None
    ) -> tuple[Change, ShardId | None]:
        with self._connection("rescheduling a message") as conn:
            return self._changes.reschedule(conn, message_id, delay_s, deliver_at_epoch_s)

    def dead_letters(
        self, wanted: DeadLetterFilter, types: Collection[str] | None, after: int, limit: int
    ) -> list[DeadLetter]:
        with self._connection("reading dead letters") as conn:
            return self._dead_letters.page(conn, wanted, types, after, limit)

    def dead_letter_ids(self, wanted: DeadLetterFilter, types: Collection[str] | None) -> list[str]:
        with self._connection("looking for dead letters") as conn:
            return self._dead_letters.ids(conn, wanted, types)

    def retry_dead(self, ids: Collection[str]) -> list[NewMessage]:
        with self._connection("retrying dead letters") as conn:
            return self._dead_letters.retry(conn, ids)

    def discard_dead(self, ids: Collection[str]) -> list[str]:
        with self._connection("discarding dead letters") as conn:
            return self._dead_letters.discard(conn, ids)

    def stats(self) -> StoreStats:
        """How much there is in the store."""
        with self._connection("counting") as conn:
            return self._statistics.read(conn)

    # Drains and duties

    @contextmanager
    def drain_session(self, *shards: ShardId, names: Mapping[str, str] = NO_ALIASES) -> Iterator[SqlDrainSession]:
        engine = self._engine("drain")
        with store_errors("connecting a drain"):
            conn = engine.connect()
        with conn:
            session = SqlDrainSession(
                conn,
                engine,
                self.dialect,
                self._locks,
                shards,
                names,
                self._mailboxes,
                self._states,
                self._in_flight,
                self._commits,
            )
            try:
                yield session
            finally:
                session.end()

    def waiting_shards(self, groups: Sequence[str], shards_per_group: int, *, delayed: bool) -> list[ShardMail]:
        shards = [ShardId(group, number) for group in groups for number in range(shards_per_group)]
        with self._connection("looking for waiting mail") as conn:
            if not delayed:
                for group in groups:
                    self._mailboxes.raise_floors(conn, [shard for shard in shards if shard.group == group])
            return self._mailboxes.waiting(conn, shards, delayed=delayed)

    def remove_remains(self) -> None:
        """Remove what drains left that died: notes of messages that are done, and locks that are rows."""
        with self._connection("removing what dead drains left") as conn:
            self._in_flight.remove_done(conn)
            self._locks.remove_dead(conn)

    def committed_shards(self) -> list[ShardId]:
        with store_errors("listening for commits"):
            return self.dialect.committed_shards(lambda: self._engine("listen"))

    # Schema

    def upgrade(self) -> list[str]:
        """Create or upgrade the schema; the names of the migrations that were applied."""
        with self._connection("upgrading the schema") as conn:
            return self._schema.upgrade(conn)

    def verify(self) -> None:
        """Check that the schema is the one this release needs.

        Raises:
            SchemaMissing: It is not; the message gives the command.
            ConfigurationError: The store belongs to another cluster or has other shards.
        """
        with self._connection("checking the schema") as conn:
            self._schema.verify(conn)

    def concerns(self, drains: int, batch_size: int) -> list[str]:
        """A sentence about each setting of the server that will do harm to so many drains at once; none is fatal."""
        # A claim for each entity of a batch, and attention for each shard.
        with self._connection("reading the server's settings") as conn:
            return self.dialect.concerns(conn, drains * batch_size + self._shards)

    def migrations(self) -> list[tuple[str, bool]]:
        """The name of every migration and whether it is applied."""
        with self._connection("reading the schema") as conn:
            return [(migration.name, applied) for migration, applied in self._schema.current(conn)]

    def schema_sql(self) -> str:
        """The schema as one SQL script; needs no connection."""
        return self._schema.sql()

    def make_views(self, views: Collection[tuple[str, str, dict[str, str]]]) -> None:
        """Make the SQL views of entity types: view name, type name, kinds of columns."""
        with self._connection("making views") as conn:
            self._schema.make_views(conn, views)

    def drop(self) -> None:
        """Remove the cluster's tables and all that is in them; a SQLite file is left to its owner."""
        with self._connection("dropping the schema") as conn:
            for statement in self.dialect.drop_schema:
                run(conn, statement)

    def close(self) -> None:
        with self._mutex:
            engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.dispose()

    # Connections

    @contextmanager
    def _connection(self, doing: str) -> Iterator[Connection]:
        with store_errors(doing), self.dialect.guard, self._engine("client").connect() as conn:
            yield conn

    def _engine(self, role: Role) -> Engine:
        if self._pid != os.getpid():
            # A thread of the parent may have held it at the fork, and that thread is not here to give it back.
            self._mutex = threading.Lock()
        with self._mutex:
            if self._pid != os.getpid():
                # The parent's sockets are not ours: forget them without saying goodbye on them.
                for engine in self._engines.values():
                    engine.dispose(close=False)
                self._engines.clear()
                self._pid = os.getpid()
            shared: Role = "client" if self.dialect.guard_is_shared else role
            if shared not in self._engines:
                self._engines[shared] = self.dialect.engine(shared, self._connections, self._timeout_s)
            return self._engines[shared]


@contextmanager
def _all_or_nothing(conn: Connection, begin: str) -> Iterator[Any]:
    undone: list[bool] = []
    run(conn, begin)
    try:
        yield lambda: undone.append(True)
    except BaseException:
        rollback(conn)
        raise
    run(conn, "ROLLBACK" if undone else "COMMIT")


def _sqlalchemy_connection(given: Any) -> Connection:
    if isinstance(given, Session):
        return given.connection()
    if isinstance(given, Connection):
        return given
    raise ConfigurationError(
        "options(connection=...) takes a SQLAlchemy Connection or Session, "
        f"got {type(given).__module__}.{type(given).__name__}"
    )
