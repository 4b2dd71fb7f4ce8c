"""What works on a store for as long as it lives, each on a database session of its own: the drain of some shards, the
leases of a runner, and its singletons. What they hold goes with the session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from entitycelery.address import Address, ShardId
from entitycelery.message import AppendOutcome, EntityCommit, Mail, Mailbox, NewMessage
from entitycelery.placement import NewRunner, Placement, Runner
from entitycelery.singleton import LoopSpec, Seat


class CommitResult(msgspec.Struct, frozen=True):
    """What became of a commit: entities that lost to another writer, and mail that the store refused.

    The turns that sent what was `refused` have failed, with `holders` the messages because of which a key was taken;
    `undone` are the entities of which nothing was committed because of that, whoever sent it: they are to be committed
    again, without those turns. Nothing at all was committed when there is an `error`: what the database said to the end
    of a turn's own transaction, such as a violated constraint, so that the turn has failed. `unstorable` are entities
    whose turns the database does not take, and what it said; nothing of theirs was committed. `delayed` are messages
    that are due at a moment which the turn that sent them, or joined them, does not know.
    """

    lost: frozenset[Address]
    refused: dict[NewMessage, AppendOutcome]
    undone: frozenset[Address] = frozenset()
    error: Exception | None = None
    unstorable: Mapping[Address, str] = MappingProxyType({})
    holders: Mapping[NewMessage, str] = MappingProxyType({})
    delayed: tuple[str, ...] = ()


class LeaseSession(Protocol):
    """How one runner is registered and holds its leases, on a database session of its own.

    Every method answers within the session's deadline or raises StoreUnavailable: take that for the loss of all
    leases, close the session and begin another.
    """

    def register(self, new: NewRunner) -> Runner:
        """Register, in the place of an earlier registration of the same worker; others learn of it at once.

        Raises:
            ConfigurationError: The store has another number of shards by now, or no machine id is free.
        """

    @property
    def held(self) -> frozenset[ShardId]:
        """The leases that were held at the last `confirm`, and what was taken and given since."""

    def confirm(self, *, starved: bool, leaving: bool, refused: Collection[ShardId] = ()) -> bool:
        """Renew the registration and the leases; False: evicted, nothing is held any more."""

    def look(self) -> Placement:
        """All runners and all leases."""

    def take(self, shards: Sequence[ShardId]) -> dict[ShardId, int]:
        """Take leases that nobody holds; those taken, with their epochs."""

    def give(self, shards: Sequence[ShardId]) -> None:
        """Give leases up; others learn of it at once."""

    def remove(self, runner: Runner) -> bool:
        """Remove the registration of another that has not been renewed since it was looked at; others learn of it at
        once. Whether it was there.

        Where the runner is there and does nothing, the database sessions of its worker are ended: their claims, its
        leases and whatever else they hold.
        """

    def watch(self, runner: Runner | None) -> None:
        """Watch this runner, and only this one, for its death, where the database can tell."""

    def wait(self, timeout_s: float, interrupt: int) -> None:
        """Return when something changed that others told of, when the watched runner died, when `interrupt` can be
        read, or after `timeout_s`."""

    def leave(self) -> None:
        """Give everything up and remove the registration; others learn of it at once."""


class SingletonSession(Protocol):
    """How one runner holds singletons, on a database session of its own.

    Every method answers within the timing's deadline or raises StoreUnavailable: take that for the loss of all, close
    the session and begin another.
    """

    def begin(self, specs: Collection[LoopSpec]) -> None:
        """Called once, before anything else is: what an earlier session of this worker holds still is given up."""

    def look(self, names: Collection[str], held: Mapping[str, int]) -> dict[str, Seat]:
        """Confirm what is held, by name and epoch, and read all of these.

        A seat is ours if it is not free, and we are its holder by that epoch.
        """

    def take(self, name: str) -> tuple[Seat, int] | None:
        """Take one that nobody holds: as it was before, and our epoch; None: somebody else has it."""

    def run(self, name: str, epoch: int, *, pid: int, again: bool) -> int | None:
        """A process is about to run it, `again` in the place of another of ours; the new epoch, or None: not ours."""

    def end(self, name: str, epoch: int, failure: str | None) -> None:
        """Its process has ended."""

    def give(self, seat: Seat, epoch: int) -> None:
        """Hand it over: no process of ours runs it."""

    def ask(self, seat: Seat) -> None:
        """Have its holder hand it over to us."""


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

    def say_alive(self) -> None:
        """Say that this drain lives; one that is silent for long is taken for frozen, and loses its claims.

        Callable from another thread while user code runs.
        """

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
