"""The SQL store: composes the nouns over one dialect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy.engine import URL

from entitycelery.address import Address, ShardId, lock_key
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import (
    Appended,
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
from entitycelery.placement import Placement, ShardLoad
from entitycelery.signals import SignalOutcome
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import (
    NO_ALIASES,
    DueMoments,
    Ear,
    MailboxStatus,
    ReplyWaiter,
    ShardMail,
    WaitingSignal,
)
from entitycelery.storage.sql.census import Census
from entitycelery.storage.sql.change import Changes
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.dead_letter import DeadLetters
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.dialects.sqlite import SQLite
from entitycelery.storage.sql.due_floor import DueFloors
from entitycelery.storage.sql.engines import DIALECTS, Engines
from entitycelery.storage.sql.floor import Floors
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.in_flight import InFlight
from entitycelery.storage.sql.lease import Leases
from entitycelery.storage.sql.lease_session import SqlLeaseSession
from entitycelery.storage.sql.mailbox import Mailboxes
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.migration import Schema
from entitycelery.storage.sql.moment import Moments
from entitycelery.storage.sql.note_floor import NoteFloor
from entitycelery.storage.sql.reply import Replies
from entitycelery.storage.sql.reshard import Reshard
from entitycelery.storage.sql.roster import SqlRoster
from entitycelery.storage.sql.runner import Runners
from entitycelery.storage.sql.schedule import Schedules
from entitycelery.storage.sql.send import Sends
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.signal import SignalRows
from entitycelery.storage.sql.singleton import Singletons
from entitycelery.storage.sql.state import NEVER_STORED, States
from entitycelery.storage.sql.statement import store_errors
from entitycelery.storage.sql.statistics import Statistics
from entitycelery.storage.sql.timetable import SqlTimetable
from entitycelery.storage.sql.unique_key import UniqueKeys
from entitycelery.storage.sql.url import shown


class SqlStore:
    """The Store of one cluster on PostgreSQL or SQLite: see the port for what each method promises.

    Claims and attention expire after `lease_s` where they are rows that nobody renews. Runners are told of delayed mail
    that is due within `horizon_s`, and see so far ahead: twice as long as between two looks of theirs. A `clock` in the
    place of the database's is for tests, on SQLite.
    """

    def __init__(
        self,
        url: URL,
        *,
        cluster: str,
        shards_per_group: int,
        connections: int,
        timeout_s: float,
        lock_mode: str = "advisory",
        lease_s: float = 10.0,
        horizon_s: float = 2.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.url = url
        self.cluster = cluster
        self._timeout_s = timeout_s
        dialect = DIALECTS[url.drivername, lock_mode]
        self.dialect: Dialect = dialect(url, cluster) if clock is None else SQLite(url, cluster, clock)
        self.engines = Engines(self.dialect, connections, timeout_s)
        self._shards = shards_per_group
        self._hashing = Hashing(self.dialect, shards_per_group)
        self._messages = Messages(self.dialect, self._hashing)
        self._unique_keys = UniqueKeys(self.dialect, self._messages)
        self._floors = Floors(self.dialect)
        self._note_floor = NoteFloor(self.dialect)
        self._due_floors = DueFloors(self.dialect)
        self._mailboxes = Mailboxes(self.dialect, self._floors, self._due_floors, self._note_floor)
        self._in_flight = InFlight(self.dialect, self._note_floor)
        self._states = States(self.dialect)
        self._replies = Replies(self.dialect)
        self._moments = Moments(self.dialect, horizon_s)
        self._signals = SignalRows(self.dialect)
        self._commits = Commits(
            *(self.dialect, self._messages, self._unique_keys, self._states, self._replies, self._in_flight),
            *(self._moments, self._signals),
        )
        self._changes = Changes(self.dialect, self._moments, self._messages, self._hashing)
        self._schedules = Schedules(self.dialect, self._messages, self._changes)
        self.timetable = SqlTimetable(self.engines.use, self._schedules)
        self._dead_letters = DeadLetters(self.dialect, self._messages, self._unique_keys, self._hashing)
        self._runners = Runners(self.dialect)
        self._leases = Leases(self.dialect)
        self._singletons = Singletons(self.dialect)
        self.roster = SqlRoster(self.dialect, self.engines, self._singletons, timeout_s)
        self.resharding = Reshard(self.dialect, self._runners, self.engines.use)
        self._statistics = Statistics(self.dialect)
        self._census = Census(self.dialect)
        self.schema = Schema(self.dialect, self._hashing, self.engines.use)
        self._locks = self.dialect.locks(lambda: self.engines.of("client"), lease_s)
        self._sends = Sends(
            *(self.engines.use, self.dialect, self._locks, self._hashing),
            *(self._messages, self._unique_keys, self._moments, self._signals),
        )

    @property
    def shards_per_group(self) -> int:
        """With how many shards in each group messages are hashed: as many as the store was last seen to have."""
        return self._hashing.number

    def follow_reshards(self) -> None:
        """Look whether the store has another number of shards by now."""
        with self.engines.use("reading the number of shards") as conn:
            self._hashing.follow(conn)

    def __repr__(self) -> str:
        return f"<SqlStore {shown(self.url)} cluster {self.cluster}>"

    # Senders

    def append(
        self, messages: Sequence[NewMessage], *, nonce: str, again: bool = False, connection: Any = None
    ) -> list[AppendOutcome]:
        return self._sends.append(messages, nonce, again=again, connection=connection)

    def append_unique(
        self, messages: Sequence[NewMessage], *, nonce: str, again: bool = False, connection: Any = None
    ) -> list[Appended]:
        return self._sends.append_unique(messages, nonce, again=again, connection=connection)

    def append_and_ask(self, message: NewMessage, *, nonce: str, flushed: bool = True) -> bool:
        return self._sends.append_and_ask(message, nonce, flushed=flushed)

    def append_unflushed(self, message: NewMessage, *, nonce: str) -> None:
        self._sends.append_unflushed(message, nonce)

    def flush(self) -> None:
        self._sends.flush()

    def complete(self, message: NewMessage, *, nonce: str, again: bool = False) -> SignalOutcome:
        return self._sends.complete(message, nonce, again=again)

    def attended(self, shards: Sequence[ShardId]) -> set[ShardId]:
        with self.engines.use("asking for attention") as conn:
            return self._locks.attended(conn, shards)

    # Signals

    def waiting_signals(self, address: Address | None, after: Address | None, limit: int) -> list[WaitingSignal]:
        with self.engines.use("reading signals") as conn:
            return self._signals.list(conn, address, after, limit)

    def signal_secret(self) -> bytes:
        with self.engines.use("reading the secret of signals") as conn:
            return self._signals.secret(conn)

    # Replies

    def replies(self, ids: Sequence[str]) -> dict[str, Reply]:
        with self.engines.use("reading replies") as conn:
            return self._replies.read(conn, ids)

    def pending_ids(self, ids: Sequence[str]) -> set[str]:
        with self.engines.use("looking for messages") as conn:
            return self._messages.pending_ids(conn, ids)

    @contextmanager
    def waiter(self) -> Iterator[ReplyWaiter]:
        with ExitStack() as stack:
            waiter: ReplyWaiter
            try:
                with store_errors("waiting for a reply"):
                    waiter = stack.enter_context(self.dialect.waiter(lambda: self.engines.of("listen")))
            except StoreUnavailable:
                # Every listening connection is in use, or the database is away: look now and then instead.
                waiter = self.looker()
            yield waiter

    def looker(self) -> ReplyWaiter:
        return PollingWaiter(self.dialect.longest_look_s)

    def purge_replies(self, older_than_s: float, limit: int) -> int:
        with self.engines.use("purging replies") as conn:
            self._in_flight.purge(conn, max(older_than_s, 86_400.0))
            return self._replies.purge(conn, older_than_s, limit)

    def purge_unique_keys(self, limit: int) -> int:
        with self.engines.use("purging keys") as conn:
            return self._unique_keys.purge(conn, limit)

    # Reading

    def state(self, address: Address) -> StoredState:
        with self.engines.use("reading a state") as conn:
            return self._states.read(conn, [address]).get(address, NEVER_STORED)

    def states(self, type_name: str | None, after: Address | None, limit: int) -> list[tuple[Address, StoredState]]:
        with self.engines.use("reading states") as conn:
            return self._states.list(conn, type_name, after, limit)

    def mailbox_status(self, address: Address, shard: ShardId) -> MailboxStatus:
        key = lock_key(self.cluster, address)
        with self.engines.use("reading a mailbox") as conn:
            self._hashing.follow(conn)
            shard = self._hashing.shard(address, shard)
            return MailboxStatus(self._messages.count(conn, address, shard, key), self._locks.is_claimed(conn, key))

    def pending(self, address: Address | None, shard: ShardId | None, limit: int) -> list[PendingMessage]:
        key = lock_key(self.cluster, address) if address else 0
        with self.engines.use("reading messages") as conn:
            if address is not None and shard is not None:
                self._hashing.follow(conn)
                shard = self._hashing.shard(address, shard)
            return self._messages.pending(conn, address, shard, key, limit)

    def census(self) -> list[StoredKind]:
        with self.engines.use("counting what is stored") as conn:
            return self._census.take(conn)

    # Control

    def unique_holder(self, name: str) -> str | None:
        with self.engines.use("looking who holds a key") as conn:
            return self._unique_keys.holder(conn, name)

    def cancel(self, message_id: str) -> tuple[Change, list[ShardId]]:
        with self.engines.use("cancelling a message") as conn:
            return self._changes.cancel(conn, message_id)

    def reschedule(
        self, message_id: str, *, delay_s: float | None, deliver_at_epoch_s: float | None
    ) -> tuple[Change, list[ShardId]]:
        with self.engines.use("rescheduling a message") as conn:
            return self._changes.reschedule(conn, message_id, delay_s, deliver_at_epoch_s)

    def dead_letters(
        self, wanted: DeadLetterFilter, types: Collection[str] | None, after: int, limit: int
    ) -> list[DeadLetter]:
        with self.engines.use("reading dead letters") as conn:
            return self._dead_letters.page(conn, wanted, types, after, limit)

    def dead_letter_ids(self, wanted: DeadLetterFilter, types: Collection[str] | None) -> list[str]:
        with self.engines.use("looking for dead letters") as conn:
            return self._dead_letters.ids(conn, wanted, types)

    def retry_dead(self, ids: Collection[str]) -> list[NewMessage]:
        with self.engines.use("retrying dead letters") as conn:
            return self._dead_letters.retry(conn, ids)

    def discard_dead(self, ids: Collection[str]) -> list[str]:
        with self.engines.use("discarding dead letters") as conn:
            return self._dead_letters.discard(conn, ids)

    def stats(self) -> StoreStats:
        """How much there is in the store."""
        with self.engines.use("counting") as conn:
            return self._statistics.read(conn)

    # Drains and duties

    @contextmanager
    def drain_session(self, *shards: ShardId, names: Mapping[str, str] = NO_ALIASES) -> Iterator[SqlDrainSession]:
        engine = self.engines.of("drain")
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

    def waiting_shards(self, shards: Sequence[ShardId]) -> list[ShardMail]:
        if not shards:
            return []
        with self.engines.use("looking for waiting mail") as conn:
            for group in sorted({shard.group for shard in shards}):
                self._floors.raise_when_due(conn, [shard for shard in shards if shard.group == group])
            return self._mailboxes.waiting(conn, shards)

    def due_moments(self, since: Mapping[ShardId, float]) -> DueMoments:
        with self.engines.use("looking when mail is due") as conn:
            return self._moments.look(conn, self._due_floors.clip(conn, since))

    # Runners and leases

    @contextmanager
    def lease_session(self, worker: str, *, deadline_s: float, lease_s: float) -> Iterator[SqlLeaseSession]:
        holds = self.dialect.holds(worker, deadline_s)
        with self.engines.lease(worker, deadline_s) as conn:
            session = SqlLeaseSession(
                *(conn, self.dialect, holds, self._runners, self._leases, self._hashing),
                deadline_s=deadline_s,
                lease_s=lease_s,
            )
            try:
                yield session
            finally:
                session.close()

    # What there is

    def placement(self) -> Placement:
        holds = self.dialect.holds("", self._timeout_s)
        with self.engines.use("looking at runners and leases") as conn:
            return Placement(self._runners.read(conn, holds.locked), self._leases.read(conn))

    def shard_loads(self) -> list[ShardLoad]:
        with self.engines.use("counting pending messages by shard") as conn:
            return self._census.loads(conn)

    def remove_remains(self, silent_for_s: float) -> list[str]:
        """Remove what drains left that died, notes of messages that are done and locks that are rows, and take the
        claims of those that have been silent for so long, because their process is frozen; the tokens of these."""
        with self.engines.use("removing what dead drains left") as conn:
            self._in_flight.raise_floor(conn)
            self._in_flight.remove_done(conn)
            self._locks.remove_dead(conn)
            silent = self._in_flight.silent(conn, silent_for_s)
            return [token for token, session, since_s in silent if self._locks.evict(conn, token, session, since_s)]

    def listen(self) -> Ear | None:
        with store_errors("listening to commits"):
            return self.dialect.ear(lambda: self.engines.of("listen"))

    # The server

    def concerns(self, drains: int, batch_size: int) -> list[str]:
        """A sentence about each setting of the server that will do harm to so many drains at once; none is fatal."""
        # A claim for each entity of a batch, and attention for each shard.
        with self.engines.use("reading the server's settings") as conn:
            return self.dialect.concerns(conn, drains * batch_size + self._shards)

    def close(self) -> None:
        self.engines.close()
