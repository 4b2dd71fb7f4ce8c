"""What the library needs of a store: two ports, one for whoever sends and reads, one for a drain.

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
    AppendOutcome,
    Change,
    DeadLetter,
    DeadLetterFilter,
    EntityCommit,
    Failure,
    Mail,
    Mailbox,
    NewMessage,
    PendingMessage,
    Reply,
    StoredKind,
    StoredState,
)

NO_ALIASES: Mapping[str, str] = MappingProxyType({})


class MailboxStatus(msgspec.Struct, frozen=True):
    """What waits for one entity: pending messages, and whether a drain holds the entity now."""

    pending: int
    claimed: bool


class ShardMail(msgspec.Struct, frozen=True):
    """A shard with runnable mail, and how many seconds its oldest has waited."""

    shard: ShardId
    waiting_s: float


class CommitResult(msgspec.Struct, frozen=True):
    """What became of a commit: entities that lost to another writer, and mail that the store refused.

    When `refused` is not empty nothing was committed: the turns that sent those messages have failed. Nor was
    anything when there is an `error`: what the database said to the end of a turn's own transaction, such as a
    violated constraint, so that the turn has failed. `unstorable` are entities whose turns the database does not take,
    and what it said; nothing of theirs was committed.
    """

    lost: frozenset[Address]
    refused: dict[NewMessage, AppendOutcome]
    error: Exception | None = None
    unstorable: Mapping[Address, str] = MappingProxyType({})


class ReplyWaiter(Protocol):
    """Tells when a reply may be there. `channel` is what a message's `reply_to` must say for it to know."""

    channel: str | None

    def fileno(self) -> int | None:
        """What becomes readable when something is announced, if anything does."""

    def take(self) -> list[str]:
        """The ids announced since the last look."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until something was announced on the channel, at most `timeout_s`; whether it was."""


class Store(Protocol):
    """The SQL store of one cluster. Every method may raise StoreUnavailable."""

    def append(
        self, messages: Sequence[NewMessage], *, nonce: str, again: bool = False, connection: Any = None
    ) -> list[AppendOutcome]:
        """Store messages, all in one transaction, and say what became of each, in order.

        All or nothing: when one is refused (CONFLICT, FULL), none is stored. `again` repeats a send whose outcome
        is unknown, under the same nonce. With `connection` they belong to the caller's transaction.
        """

    def append_and_ask(self, message: NewMessage, *, nonce: str) -> bool:
        """Store a message without key and capacity, and say whether a drain is known to look at its shard afterwards.

        `append` of one message and `attended` in one round trip, where the database allows it.
        """

    def attended(self, shards: Sequence[ShardId]) -> set[ShardId]:
        """Those shards at which a drain is known to look again after this moment."""

    def replies(self, ids: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there."""

    def pending_ids(self, ids: Sequence[str]) -> set[str]:
        """Those ids whose messages are stored and not answered."""

    def waiter(self) -> AbstractContextManager[ReplyWaiter]:
        """A waiter for the replies of one ask; listening begins before this returns."""

    def state(self, address: Address) -> StoredState:
        """The committed state; version 0 where there never was one."""

    def states(self, type_name: str | None, after: Address | None, limit: int) -> list[tuple[Address, StoredState]]:
        """Live entities in order of address."""

    def mailbox_status(self, address: Address, shard: ShardId) -> MailboxStatus:
        """What waits for an entity."""

    def pending(self, address: Address | None, shard: ShardId | None, limit: int) -> list[PendingMessage]:
        """Pending messages, oldest first."""

    def cancel(self, message_id: str) -> tuple[Change, ShardId | None]:
        """End a pending message with the reply `cancelled`, and tell whoever waits; a shard to ring for, if any."""

    def reschedule(
        self, message_id: str, *, delay_s: float | None, deliver_at_epoch_s: float | None
    ) -> tuple[Change, ShardId | None]:
        """Give a pending message another due time; a shard to ring for, if any."""

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

    def drain_session(
        self, *shards: ShardId, names: Mapping[str, str] = NO_ALIASES
    ) -> AbstractContextManager[DrainSession]:
        """A session of one drain over shards of one group. On every way out its claims are released.

        `names` are the entity types' own names by alias: mail to an alias is mail to the entity of the own name.
        """

    def waiting_shards(self, groups: Sequence[str], shards_per_group: int, *, delayed: bool) -> list[ShardMail]:
        """Every shard that has runnable mail: ready mail, or delayed mail that has become due."""

    def committed_shards(self) -> list[ShardId]:
        """Shards for which mail was committed on callers' own connections since the last look."""

    def purge_replies(self, older_than_s: float, limit: int) -> int:
        """Delete up to `limit` replies that are too old; how many there were."""

    def close(self) -> None:
        """Give all connections back."""


class DrainSession(Protocol):
    """One drain of one or several shards, on one database session."""

    def attend(self) -> None:
        """Promise to look again: from now until `forsake`, senders need not ring."""

    def forsake(self) -> None:
        """Take the promise back. Look once more afterwards."""

    def claim(self, limit: int) -> list[Mailbox]:
        """Claim entities with due mail that nobody else holds and read up to `limit` of their messages.

        Notes what is about to run. Messages that may have killed their process come alone.
        """

    def commit(self, commits: Sequence[EntityCommit], *, last: bool) -> CommitResult:
        """Commit turns, each entity all or nothing, and tell whoever waits for the replies.

        `last` also clears the note of what is running.
        """

    def release(self, mailboxes: Collection[Mailbox]) -> None:
        """Release the claims of these entities."""

    def keep_only(self, running: Collection[str], released: Collection[Mailbox]) -> None:
        """Give entities back whose turns have not begun; callable from another thread while user code runs."""

    def open_turn(self, mailbox: Mailbox, mail: Mail) -> Any:
        """Begin the transaction of a turn that wants it; a SQLAlchemy connection, or None if the turn has lost."""

    def commit_turn(self, commit: EntityCommit) -> CommitResult:
        """Commit the transaction of `open_turn` together with the turn."""

    @property
    def must_not_write(self) -> bool:
        """Whether a write by another thread would wait for the transaction of `open_turn`."""

    def rollback_turn(self, *, interrupt: bool = False) -> None:
        """Undo the transaction of `open_turn`; `interrupt` does so from another thread while user code runs."""


@contextmanager
def closing_store(make: Callable[[], Store]) -> Iterator[Store]:
    """A store that is closed at the end."""
    store = make()
    try:
        yield store
    finally:
        store.close()


__all__ = [
    "CommitResult",
    "DrainSession",
    "Failure",
    "MailboxStatus",
    "ReplyWaiter",
    "ShardMail",
    "Store",
    "closing_store",
]
