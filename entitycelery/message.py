"""What travels: messages on their way in, mail read by a drain, replies on their way out."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from entitycelery.address import Address, ShardId


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


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message about to be stored. `args` is canonical JSON; instants are seconds since the epoch."""

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
    capacity: int | None = None


class AppendOutcome(StrEnum):
    """What became of one send."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    FULL = "full"


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


class StoredState(msgspec.Struct, frozen=True):
    """A state row: `version` counts its commits; `state` is JSON, None when the entity is deleted or new."""

    version: int
    state_version: int
    state: str | None


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


class Ended(msgspec.Struct, frozen=True):
    """A turn's decision that its message is over: it becomes a reply."""

    mail: Mail
    status: Status
    result: str | None = None
    failure: Failure | None = None
    outgoing: tuple[NewMessage, ...] = ()


class Retried(msgspec.Struct, frozen=True):
    """A turn's decision that its message is tried again in `after_s`; `blocking` holds the mailbox back."""

    mail: Mail
    after_s: float
    blocking: bool
    failure: Failure


class EntityCommit(msgspec.Struct, frozen=True):
    """What the turns of one entity leave behind; it wins or loses as a whole."""

    address: Address
    lock_key: int
    version: int
    state_version: int
    state: str | None
    turns: tuple[Ended | Retried, ...]


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


class EntityStatus(msgspec.Struct, frozen=True):
    """What an entity is doing: `idle`, `pending` (mail waits) or `processing` (a drain holds it)."""

    status: Literal["idle", "pending", "processing"]
    exists: bool
    version: int
    pending: int
