"""What drains did, in the order in which they did it, as seen at the ports of their sessions.

The model follows these events and says of each whether it was allowed. A drain's thread or process can be stopped at
any of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from entitycelery.message import Ended, EntityCommit, Mail, Mailbox
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql.in_flight import InFlight
from entitycelery.storage.sql.session import SqlDrainSession


@dataclass(frozen=True)
class Claimed:
    """A drain claimed entities and read this mail of theirs."""

    drain: str
    mail: tuple[Mail, ...]


@dataclass(frozen=True)
class Counted:
    """A drain found messages that another one was running when it lost its claims."""

    drain: str
    ids: frozenset[str]


@dataclass(frozen=True)
class Turn:
    """One turn of a commit: how it left its message, and the ids of what it sent."""

    id: str
    rev: int
    is_over: bool
    sent: tuple[str, ...]


@dataclass(frozen=True)
class EntityTurns:
    """What one entity's turns committed, on top of which version, and whether it lost to another writer."""

    address: str
    version: int
    turns: tuple[Turn, ...]
    lost: bool


@dataclass(frozen=True)
class Committed:
    """A drain committed a batch, or the part of it that was done."""

    drain: str
    entities: tuple[EntityTurns, ...]


@dataclass(frozen=True)
class Noted:
    """What a drain's note says from now on; None: it has no note."""

    drain: str
    ids: frozenset[str] | None


@dataclass(frozen=True)
class Released:
    """A drain gave entities back; None: all."""

    drain: str
    addresses: frozenset[str] | None


Event = Claimed | Counted | Committed | Noted | Released


class Witness:
    """Sees every drain of this process while `watching`.

    `stop_before` and `stop_after` of the drain's own thread are called around its claims and commits.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.here = threading.local()
        self.sessions: dict[str, SqlDrainSession] = {}

    def take(self) -> list[Event]:
        """What happened since the last time."""
        events, self.events = self.events, []
        return events

    @contextmanager
    def stopping(self, before: Callable[[str], None], after: Callable[[str], None]) -> Iterator[None]:
        """Have this thread's drain call these around each claim and commit."""
        self.here.before, self.here.after = before, after
        try:
            yield
        finally:
            del self.here.before, self.here.after

    @contextmanager
    def watching(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for wrap in (self._claim, self._commit, self._commit_turn, self._keep_only, self._release, self._end):
                name = wrap.__name__[1:]
                patch.setattr(SqlDrainSession, name, wrap(getattr(SqlDrainSession, name)))
            patch.setattr(InFlight, "count_crash", self._count_crash(InFlight.count_crash))
            yield

    def _before(self, what: str) -> None:
        getattr(self.here, "before", lambda _: None)(what)

    def _after(self, what: str) -> None:
        getattr(self.here, "after", lambda _: None)(what)

    def _claim(self, claim: Any) -> Any:
        def watched(session: SqlDrainSession, limit: int) -> list[Mailbox]:
            self.sessions[session._token] = session
            found: list[Mailbox] = claim(session, limit)
            mail = tuple(mail for mailbox in found for mail in mailbox.mail)
            if mail:
                self.events.append(Claimed(session._token, mail))
                self._noted(session, (one.id for one in mail))
                self._after("claim")
            return found

        return watched

    def _count_crash(self, count: Any) -> Any:
        def watched(in_flight: InFlight, conn: Any, token: str, suspects: Collection[str]) -> None:
            count(in_flight, conn, token, suspects)
            self.events.append(Counted(token, frozenset(suspects)))

        return watched

    def _commit(self, commit: Any) -> Any:
        def watched(session: SqlDrainSession, commits: Sequence[EntityCommit], *, last: bool) -> CommitResult:
            self._before("commit")
            result: CommitResult = commit(session, commits, last=last)
            self._committed(session, commits, result)
            if last and not session._noted:
                self._noted(session, None)
            self._after("commit")
            return result

        return watched

    def _commit_turn(self, commit: Any) -> Any:
        def watched(session: SqlDrainSession, one: EntityCommit) -> CommitResult:
            result: CommitResult = commit(session, one)
            self._committed(session, [one], result)
            self._after("commit")
            return result

        return watched

    def _committed(self, session: SqlDrainSession, commits: Sequence[EntityCommit], result: CommitResult) -> None:
        if result.refused or result.error is not None:
            return
        done = [EntityTurns(str(c.address), c.version, _turns(c), c.address in result.lost) for c in commits]
        self.events.append(Committed(session._token, tuple(done)))

    def _keep_only(self, keep_only: Any) -> Any:
        def watched(session: SqlDrainSession, running: Collection[str], released: Collection[Mailbox]) -> None:
            keep_only(session, running, released)
            self._noted(session, running or None)
            self._given_back(session, released)

        return watched

    def _release(self, release: Any) -> Any:
        def watched(session: SqlDrainSession, mailboxes: Collection[Mailbox]) -> None:
            release(session, mailboxes)
            self._given_back(session, mailboxes)

        return watched

    def _end(self, end: Any) -> Any:
        def watched(session: SqlDrainSession) -> None:
            end(session)
            if not session._conn.invalidated:
                self._noted(session, None)
            self.events.append(Released(session._token, None))

        return watched

    def _noted(self, session: SqlDrainSession, ids: Any) -> None:
        self.events.append(Noted(session._token, None if ids is None else frozenset(ids)))

    def _given_back(self, session: SqlDrainSession, mailboxes: Collection[Mailbox]) -> None:
        addresses = frozenset(str(mailbox.address) for mailbox in mailboxes)
        self.events.append(Released(session._token, addresses))


def _turns(commit: EntityCommit) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            turn.mail.id,
            turn.mail.rev,
            isinstance(turn, Ended),
            tuple(message.id for message in turn.outgoing) if isinstance(turn, Ended) else (),
        )
        for turn in commit.turns
    )
