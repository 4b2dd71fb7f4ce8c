"""What travels: messages on their way in, mail read by a drain, replies on their way out."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

from entitycelery.address import Address, ShardId
from entitycelery.unique import Unique


class Status(StrEnum):
    """How a message ended."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DEAD = "dead"


class Failure(msgspec.Struct, frozen=True):
    """Why a message failed: what its reply stores in place of a result."""

    reason: str
    type: str
    message: str
    args: list[object] | None = None
    traceback: str = ""


class Unknown(Failure, frozen=True, kw_only=True):
    """Why a message was put off: the code of this process does not know it, and since when that has been so."""

    unknown_since_epoch_s: float


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message about to be stored. `args` is canonical JSON; instants are seconds since the epoch.

    `keyed`: whether it may be there already is for the store to find out. With `unique` its fingerprint names its key.
    `completes`: the outcome, as JSON, that the row of this id takes instead, if it is a signal that waits for one.
    """

    id: str
    fingerprint: str
    shard: ShardId
    address: Address
    lock_key: int
    operation: str
    args: str
    keyed: bool = False
    sender: str | None = None
    reply_to: str | None = None
    delay_s: float | None = None
    deliver_at_epoch_s: float | None = None
    expires_s: float | None = None
    expires_at_epoch_s: float | None = None
    capacity: int | None = None
    unique: Unique | None = None
    completes: str | None = None

    @property
    def is_delayed(self) -> bool:
        """Whether it waits for a due moment; what is due at once is rung for by its sender."""
        return bool(self.delay_s) or self.deliver_at_epoch_s is not None


class AppendOutcome(StrEnum):
    """What became of one send."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    FULL = "full"
    JOINED = "joined"
    TAKEN = "taken"


REFUSALS = frozenset({AppendOutcome.CONFLICT, AppendOutcome.FULL, AppendOutcome.TAKEN})
"""What undoes everything that is sent with it."""


class Appended(NamedTuple):
    """What became of one send, and the message that answers it: another one than was sent, where it joined that or
    was refused because of it."""

    outcome: AppendOutcome
    message_id: str


class Mail(msgspec.Struct, frozen=True):
    """A pending message as a drain reads it. `rev` tells whether it changed since."""

    id: str
    rev: int
    seq: int
    address: Address
    operation: str
    args: str
    attempt: int
    crashes: int
    sender: str | None
    reply_to: str | None
    expired: bool
    read_at_epoch_s: float = 0.0
    unknown_since_epoch_s: float | None = None


class StoredState(msgspec.Struct, frozen=True):
    """A state row: `version` counts its commits; `state` is JSON, None when the entity is deleted or new; so are
    `timers` and `signals`, None where there are none."""

    version: int
    state_version: int
    state: str | None
    timers: str | None = None
    signals: str | None = None


class Mailbox(msgspec.Struct, frozen=True):
    """One claimed entity: its state as read under the claim and its due mail in order."""

    address: Address
    lock_key: int
    stored: StoredState
    fence: int
    mail: tuple[Mail, ...]


class Reply(msgspec.Struct, frozen=True):
    """The stored outcome of a message."""

    id: str
    address: Address
    operation: str
    status: Status
    result: str | None
    failure: Failure | None
    finished_at_epoch_s: float


class Asked(msgspec.Struct, frozen=True):
    """A message that is answered by a later turn than its own, and the channel on which somebody waits for that."""

    message_id: str
    reply_to: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What becomes the reply of a message."""

    message_id: str
    reply_to: str | None
    status: Status
    result: str | None = None
    failure: Failure | None = None


class Ended(msgspec.Struct, frozen=True):
    """A turn's decision that its message is over: it becomes a reply, unless it is `parked`, to be answered by a later
    turn. `answers` are those of earlier messages; `disarmed` are messages of timers and rows of signals that are not to
    come any more."""

    mail: Mail
    status: Status
    result: str | None = None
    failure: Failure | None = None
    outgoing: tuple[NewMessage, ...] = ()
    disarmed: tuple[str, ...] = ()
    parked: bool = False
    answers: tuple[Answer, ...] = ()

    @property
    def replies(self) -> tuple[Answer, ...]:
        """All replies that it writes."""
        if self.parked:
            return self.answers
        return (Answer(self.mail.id, self.mail.reply_to, self.status, self.result, self.failure), *self.answers)


class Retried(msgspec.Struct, frozen=True):
    """A turn's decision that its message is tried again in `after_s`; `blocking` holds the mailbox back.

    `counts`: it was an attempt, one of those that the handler's retries allow.
    """

    mail: Mail
    after_s: float
    blocking: bool
    failure: Failure
    counts: bool = True


class EntityCommit(msgspec.Struct, frozen=True):
    """What the turns of one entity leave behind; it wins or loses as a whole."""

    address: Address
    lock_key: int
    version: int
    state_version: int
    state: str | None
    turns: tuple[Ended | Retried, ...]
    timers: str | None = None
    signals: str | None = None

    @property
    def disarmed(self) -> list[str]:
        """The messages of timers and signals that its turns cancelled or set anew."""
        return [one for turn in self.turns if isinstance(turn, Ended) for one in turn.disarmed]


class Timer(msgspec.Struct, frozen=True):
    """A timer that an entity has set: when it fires next, what that calls with which JSON arguments, and with which
    message; `every_s`: then again every so many seconds."""

    name: str
    operation: str
    args: str
    due_epoch_s: float
    every_s: float | None
    message_id: str


class PendingSignal(msgspec.Struct, frozen=True):
    """A signal that an entity expects: since when, until when if that is bounded, and `then` which operation goes on
    with its value. `token`: what completes it."""

    address: Address
    name: str
    since_epoch_s: float
    expires_epoch_s: float | None
    then: str
    token: str


class PendingMessage(msgspec.Struct, frozen=True):
    """A pending message as operators see it."""

    id: str
    address: Address
    operation: str
    args: str
    shard: ShardId
    attempt: int
    crashes: int
    sent_at_epoch_s: float
    due_at_epoch_s: float | None
    last_failure: Failure | None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was given up on, with its last failure. `seq` grows in the order of sending."""

    id: str
    seq: int
    address: Address
    operation: str
    args: str
    sender: str | None
    attempts: int
    crashes: int
    reason: str
    failure: Failure
    sent_at_epoch_s: float
    died_at_epoch_s: float


class DeadLetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that fit everything given; all of them where nothing is.

    `type` also means its aliases. Ages count from the last failure.
    """

    ids: tuple[str, ...] | None = None
    type: str | None = None
    entity_id: str | None = None
    operation: str | None = None
    reason: str | None = None
    older_than_s: float | None = None
    younger_than_s: float | None = None


class ChangeOutcome(StrEnum):
    """What became of a cancel or a reschedule."""

    CANCELLED = "cancelled"
    RESCHEDULED = "rescheduled"
    FINISHED = "finished"
    UNKNOWN = "unknown"


class Change(msgspec.Struct, frozen=True):
    """What a cancel or a reschedule did. `finished`: its turn, or another end with this `status`, came first."""

    message_id: str
    outcome: ChangeOutcome
    status: Status | None


class StoredKind(msgspec.Struct, frozen=True):
    """How many messages or dead letters of an operation, or states of a version, are stored."""

    stored: Literal["message", "dead letter", "state"]
    type: str
    operation: str
    state_version: int
    count: int


class UnknownKind(msgspec.Struct, frozen=True):
    """What is stored and not known to the code: `why` says which part of it. States have no operation."""

    stored: Literal["message", "dead letter", "state"]
    type: str
    operation: str | None
    state_version: int | None
    count: int
    why: str


class EntityStatus(msgspec.Struct, frozen=True):
    """What an entity is doing: `idle`, `pending` (mail waits), `processing` (a drain holds it) or `suspended` (it
    waits for nothing but `signals` and timers)."""

    status: Literal["idle", "pending", "processing", "suspended"]
    exists: bool
    version: int
    pending: int
    signals: tuple[PendingSignal, ...] = ()


class TableStats(msgspec.Struct, frozen=True):
    """One table, on PostgreSQL by its own statistics; bytes with all indexes. None: the database does not say."""

    name: str
    rows: int
    dead_rows: int | None
    size_bytes: int | None


class StoreStats(msgspec.Struct, frozen=True):
    """How much there is in a store.

    Attributes:
        waiting: Messages that could run now.
        delayed: Messages, retries too, that are due later.
        retried: Of both, those that have failed at least once or were put off.
        oldest_waiting_s: How long the oldest waiting message has been due; None where none waits.
        replies: How many by status.
    """

    waiting: int
    delayed: int
    retried: int
    oldest_waiting_s: float | None
    dead_letters: int
    replies: dict[str, int]
    tables: tuple[TableStats, ...]
    size_bytes: int
