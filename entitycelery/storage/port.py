"""What the library needs of a store, for whoever sends and reads, and to begin the sessions of those who work on it.

Safety comes from here alone: unique keys, claims, versions and pending checks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from entitycelery.address import Address, ShardId
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
)
from entitycelery.placement import Placement, ShardLoad
from entitycelery.signals import SignalOutcome
from entitycelery.storage.roster import Roster
from entitycelery.storage.sessions import DrainSession, LeaseSession
from entitycelery.storage.timetable import Timetable

EVER_EPOCH_S = -1e11
"""Earlier than any instant that Python knows."""
NO_ALIASES: Mapping[str, str] = MappingProxyType({})


class MailboxStatus(msgspec.Struct, frozen=True):
    """What waits for one entity: pending messages, and whether a drain holds the entity now."""

    pending: int
    claimed: bool


class ShardMail(msgspec.Struct, frozen=True):
    """A shard with runnable mail, and how many seconds its oldest has waited."""

    shard: ShardId
    waiting_s: float


class WaitingSignal(msgspec.Struct, frozen=True):
    """The row of a signal that waits: its arguments, when it was stored and when it times out."""

    address: Address
    args: str
    sent_at_epoch_s: float
    due_at_epoch_s: float


class DueMoments(msgspec.Struct, frozen=True):
    """When delayed mail and retries of some shards are due, as one look found out; seconds of the database's clock.

    Attributes:
        now_epoch_s: The moment of the look.
        due: Shards with runnable mail that is due, and when the youngest of it became so.
        next_epoch_s: The first moment after the look; None: there is none within the horizon.
    """

    now_epoch_s: float
    due: dict[ShardId, float]
    next_epoch_s: float | None


class Announced(msgspec.Struct, frozen=True):
    """What was committed since the last `take`: shards with mail from callers' connections, and the earliest due moment
    of delayed mail that is due soon, by the database's clock."""

    shards: frozenset[ShardId]
    due_epoch_s: float | None


class Ear(Protocol):
    """Hears what is announced, from the moment on at which it was made."""

    def fileno(self) -> int:
        """What becomes readable when something is announced, or the connection ends."""

    def take(self) -> Announced:
        """What was announced since the last look."""

    def close(self) -> None:
        """Listen no more."""


class ReplyWaiter(Protocol):
    """Tells when a reply may be there. `channel` is what a message's `reply_to` must say for it to know."""

    channel: str | None

    def fileno(self) -> int | None:
        """What becomes readable when something is announced, if anything does."""

    def take(self) -> list[str]:
        """The ids announced since the last look."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until something was announced on the channel, at most `timeout_s`; whether it was."""

    def heard(self, message_id: str) -> str | None:
        """The result of a message, as JSON, if it was announced whole."""


class Store(Protocol):
    """The SQL store of one cluster. Every method may raise StoreUnavailable."""

    def append(
        self, messages: Sequence[NewMessage], *, nonce: str, again: bool = False, connection: Any = None
    ) -> list[AppendOutcome]:
        """Store messages, all in one transaction, and say what became of each, in order.

        All or nothing: when one is refused (CONFLICT, FULL), none is stored. `again` repeats a send whose outcome
        is unknown, under the same nonce. With `connection` they belong to the caller's transaction.
        """

    def append_unique(
        self, messages: Sequence[NewMessage], *, nonce: str, again: bool = False, connection: Any = None
    ) -> list[Appended]:
        """`append` of messages some of which have `unique`; also tells which message answers each.

        Nothing is stored for one that joins a pending message, which gets its arguments. One is refused (TAKEN) where
        its key is taken and it says `reject`.
        """

    def complete(self, message: NewMessage, *, nonce: str, again: bool = False) -> SignalOutcome:
        """Give the row of a message's id the outcome that it `completes` with, if that waits for one; else store the
        message, unless there has been a row of this id."""

    def waiting_signals(self, address: Address | None, after: Address | None, limit: int) -> list[WaitingSignal]:
        """Signals that wait, of one entity or of all in order of address, from behind `after`."""

    def signal_secret(self) -> bytes:
        """By what the cluster's tokens of signals are signed."""

    def unique_holder(self, name: str) -> str | None:
        """The message that holds a key, if it is taken: the pending one that was sent last, if one is pending."""

    def append_and_ask(self, message: NewMessage, *, nonce: str, flushed: bool = True) -> bool:
        """Store a message without key and capacity, and say whether a drain is known to look at its shard afterwards.

        `append` of one message and `attended` in one round trip, where the database allows it; `append_unflushed`,
        where it is not to be `flushed`.
        """

    def append_unflushed(self, message: NewMessage, *, nonce: str) -> None:
        """Store a message without key and capacity, and do not wait for the disk: everybody sees it at once, and a
        database that crashes within the second may lose it, with all that came of it."""

    def flush(self) -> None:
        """Return when what was stored before is on disk."""

    def attended(self, shards: Sequence[ShardId]) -> set[ShardId]:
        """Those shards at which a drain is known to look again after this moment."""

    def replies(self, ids: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there."""

    def pending_ids(self, ids: Sequence[str]) -> set[str]:
        """Those ids whose messages are stored and not answered."""

    def waiter(self) -> AbstractContextManager[ReplyWaiter]:
        """A waiter for the replies of one ask; listening begins before this returns."""

    def looker(self) -> ReplyWaiter:
        """A waiter for replies of messages that were stored before: nobody announces them to it."""

    def state(self, address: Address) -> StoredState:
        """The committed state; version 0 where there never was one."""

    def states(self, type_name: str | None, after: Address | None, limit: int) -> list[tuple[Address, StoredState]]:
        """Live entities in order of address."""

    def mailbox_status(self, address: Address, shard: ShardId) -> MailboxStatus:
        """What waits for an entity."""

    def pending(self, address: Address | None, shard: ShardId | None, limit: int) -> list[PendingMessage]:
        """Pending messages, oldest first."""

    def cancel(self, message_id: str) -> tuple[Change, list[ShardId]]:
        """End a pending message with the reply `cancelled`, and tell whoever waits; the shards to ring for."""

    def reschedule(
        self, message_id: str, *, delay_s: float | None, deliver_at_epoch_s: float | None
    ) -> tuple[Change, list[ShardId]]:
        """Give a pending message another due time; the shards to ring for."""

    def dead_letters(
        self, wanted: DeadLetterFilter, types: Collection[str] | None, after: int, limit: int
    ) -> list[DeadLetter]:
        """Dead letters in the order of sending, from behind `seq` `after`; of these types, where given."""

    def dead_letter_ids(self, wanted: DeadLetterFilter, types: Collection[str] | None) -> list[str]:
        """The ids of all such dead letters, in the order of sending."""

    def retry_dead(self, ids: Collection[str]) -> list[NewMessage]:
        """Make those dead letters pending messages again, all in one transaction; the messages stored."""

    def discard_dead(self, ids: Collection[str]) -> list[str]:
        """Delete those dead letters, all in one transaction; the ids of those that were there."""

    def census(self) -> list[StoredKind]:
        """Every kind of message, dead letter and state that is stored, with its number; reads whole tables."""

    @property
    def timetable(self) -> Timetable:
        """The schedules."""

    @property
    def roster(self) -> Roster:
        """The singletons."""

    def drain_session(
        self, *shards: ShardId, names: Mapping[str, str] = NO_ALIASES
    ) -> AbstractContextManager[DrainSession]:
        """A session of one drain over shards of one group. On every way out its claims are released.

        `names` are the entity types' own names by alias: mail to an alias is mail to the entity of the own name.
        """

    def waiting_shards(self, shards: Sequence[ShardId]) -> list[ShardMail]:
        """Those shards that have runnable mail which was due at once."""

    def due_moments(self, since: Mapping[ShardId, float]) -> DueMoments:
        """When delayed mail is due in these shards: what has become due `since` then, and the next moment behind that,
        within the horizon within which senders tell."""

    def lease_session(self, worker: str, *, deadline_s: float, lease_s: float) -> AbstractContextManager[LeaseSession]:
        """The session of a worker's runner. On every way out its leases are given up, or lost with the connection.

        `deadline_s` bounds each of its calls; `lease_s` is how long a lease lives that is not renewed, where
        leases are rows.
        """

    def placement(self) -> Placement:
        """All runners and all leases; the holders of leases may be gone."""

    def shard_loads(self) -> list[ShardLoad]:
        """Every shard with pending messages, and how many."""

    def listen(self) -> Ear | None:
        """Listen to what is announced; None where nothing is. Look for yourself afterwards: what was announced before
        is not heard."""

    def purge_replies(self, older_than_s: float, limit: int) -> int:
        """Delete up to `limit` replies that are too old; how many there were."""

    def purge_unique_keys(self, limit: int) -> int:
        """Delete up to `limit` rows of keys that nobody uses now; how many there were."""

    def close(self) -> None:
        """Give all connections back."""


@contextmanager
def closing_store(make: Callable[[], Store]) -> Iterator[Store]:
    """A store that is closed at the end."""
    store = make()
    try:
        yield store
    finally:
        store.close()
