"""One drain's database session: claims, the note of what runs, commits.

One drain works on one or several shards of one group.
Owns one connection from claim to release. Everything that touches it holds a mutex, because the watch over long
turns gives entities back from another thread while user code runs.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from entitycelery.address import Address, ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import AppendOutcome, EntityCommit, Mail, Mailbox, NewMessage
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql.commit import Commits, Refused
from entitycelery.storage.sql.dialects.base import Dialect, Locks
from entitycelery.storage.sql.in_flight import InFlight
from entitycelery.storage.sql.mailbox import Candidate, Candidates, ClaimedMail, Mailboxes
from entitycelery.storage.sql.own_transaction import OwnTransaction
from entitycelery.storage.sql.state import NEVER_STORED, States
from entitycelery.storage.sql.statement import (
    first_line,
    is_contention,
    is_unstorable,
    store_errors,
    transaction,
)

_LARGEST_PAGE = 12_800
_RACES = 100


class SqlDrainSession:
    """The DrainSession of the SQL store: see the port for what each method promises."""

    def __init__(
        self,
        conn: Connection,
        engine: Engine,
        dialect: Dialect,
        locks: Locks,
        shards: Sequence[ShardId],
        names: Mapping[str, str],
        mailboxes: Mailboxes,
        states: States,
        in_flight: InFlight,
        commits: Commits,
    ) -> None:
        self._conn = conn
        self._dialect = dialect
        self._locks = locks
        self._shards = shards
        self._names = names
        self._busy = shards
        self._seen: list[Candidate] = []
        self._unhandled: set[str] = set()
        self._mailboxes = mailboxes
        self._states = states
        self._in_flight = in_flight
        self._commits = commits
        self._mutex = threading.RLock()
        self._token = os.urandom(8).hex()
        self._noted = False
        self._has_claimed = False
        # By lock key the entities that hold it: two may share one, and what is held must not be taken twice.
        self._held: dict[int, set[Address]] = {}
        self._own = OwnTransaction(engine, dialect, states, commits)

    # Attention

    def attend(self) -> None:
        with self._use("attending shards") as conn:
            self._locks.attend(conn, self._token, self._shards)

    def forsake(self) -> None:
        with self._use("forsaking shards") as conn:
            self._locks.forsake(conn, self._token, self._shards)

    # Claims

    def claim(self, limit: int) -> list[Mailbox]:
        with self._use("claiming mail") as conn:
            self._in_flight.settle(conn)
            if self._has_claimed:
                # Not before a drain's first batch: somebody may be waiting for a lone message.
                self._raise_floors(conn)
            self._has_claimed = True
            everywhere = self._busy == self._shards
            for _ in range(_RACES):
                # What an earlier look found and left is still a good hint: it is read anew once its entity is locked.
                found = Candidates(self._seen, complete=False) if self._seen else self._candidates(conn, limit)
                if not found.mail:
                    if self._mailboxes.look_below_floors(conn, self._shards):
                        continue
                    return []
                with self._dialect.claim_scope(conn):
                    mailboxes, raced = self._claim(conn, limit, found)
                if mailboxes:
                    return mailboxes
                if not raced:
                    if everywhere:
                        return []
                    # All that these shards have is busy elsewhere, which says nothing of the others.
                    self._busy, self._seen, everywhere = self._shards, [], True
            # Mail that is there and cannot be read, or a great many other drains: the sweep looks again.
            return []

    def _raise_floors(self, conn: Connection) -> None:
        self._mailboxes.raise_floors(conn, self._shards)
        self._in_flight.raise_floor(conn)

    def _claim(self, conn: Connection, limit: int, found: Candidates) -> tuple[list[Mailbox], bool]:
        keys, ids = self._lock_candidates(conn, limit, found)
        if not keys:
            return [], False
        # Read in a second statement: the first one's snapshot is older than the locks.
        read = self._mailboxes.read(conn, self._token, ids, self._names)
        mail, solo = self._runnable(conn, read)
        if len(mail) < len(ids):
            self._seen = []
        wanted = {key for key, _ in mail}
        if wanted != keys:
            self._locks.release(conn, self._token, keys - wanted)
        if not mail:
            return [], not solo
        note = self._in_flight.note_parameters(self._token, [m.id for _, m in mail])
        addresses = {m.address for _, m in mail}
        self._unhandled.update(message.id for _, message in mail)
        for key, message in mail:
            self._held.setdefault(key, set()).add(message.address)
        stored = self._states.read(conn, addresses, before=self._in_flight.note_statement, before_parameters=note)
        self._noted = True
        return _mailboxes(mail, stored, read.fence), False

    def _lock_candidates(self, conn: Connection, limit: int, found: Candidates) -> tuple[set[int], list[str]]:
        """Lock the entities of the oldest runnable mail; their keys, and the ids of up to `limit` of their messages."""
        claimed: set[int] = set()
        refused: set[int] = set(self._held)
        page = limit if found.mail is self._seen else 4 * limit
        while True:
            # What is busy elsewhere is read past, so that one hot or slow entity does not hide the rest.
            while True:
                free = [one for one in found.mail if one.lock_key not in refused]
                mine = _batch(free, limit)
                new = {one.lock_key for one in mine} - claimed
                granted = self._locks.claim(conn, self._token, new) if new else new
                claimed |= granted
                if granted == new:
                    break
                refused |= new - granted
            is_cut = len(mine) < min(len(free), limit)
            if found.complete or len(mine) * 2 >= limit or is_cut or page > _LARGEST_PAGE:
                ids = [one.id for one in mine]
                taken = set(ids)
                self._seen = [one for one in found.mail if one.id not in taken]
                return claimed, ids
            found = self._candidates(conn, page)
            page *= 4

    def _candidates(self, conn: Connection, limit: int) -> Candidates:
        # While there is mail, the shards that had none are left alone; the drain's budget bounds for how long.
        found = self._mailboxes.candidates(conn, self._busy, limit)
        if not found.mail and self._busy != self._shards:
            self._busy = self._shards
            found = self._mailboxes.candidates(conn, self._busy, limit)
        numbers = {one.shard for one in found.mail}
        if len(numbers) < len(self._busy):
            self._busy = [shard for shard in self._busy if shard.number in numbers] or self._shards
        if len(numbers) > 1:
            # Entities of different shards owe each other no order, and drains of the same shards keep apart.
            first = random.choice(tuple(numbers))
            found.mail.sort(key=lambda one: (one.shard < first, one.shard, one.seq))
        return found

    def _runnable(self, conn: Connection, read: ClaimedMail) -> tuple[list[tuple[int, Mail]], bool]:
        """What to run now; a message that was running when its process died runs alone, its crash counted first."""
        if read.others_in_flight:
            ids = [mail.id for _, mail in read.mail]
            suspects = self._in_flight.suspects(conn, self._token, ids)
            if suspects:
                self._count_crash(conn, suspects)
                return [], False
        held: set[Address] = set()
        clean: list[tuple[int, Mail]] = []
        for key, mail in read.mail:
            if mail.address in held:
                continue
            if mail.crashes:
                if all(mail.address != m.address for _, m in clean):
                    return [(key, mail)], True
                held.add(mail.address)
                continue
            clean.append((key, mail))
        # Mail to an alias has a lock of its own: it waits until the entity's other mail is done.
        keys: dict[Address, int] = {}
        return [(key, mail) for key, mail in clean if keys.setdefault(mail.address, key) == key], False

    def _count_crash(self, conn: Connection, suspects: set[str]) -> None:
        if self._in_transaction(conn):
            self._in_flight.count_crash(conn, self._token, suspects)
            return
        with transaction(conn, self._dialect.begin):
            self._in_flight.count_crash(conn, self._token, suspects)

    def _in_transaction(self, conn: Connection) -> bool:
        driver: Any = conn.connection.driver_connection
        return bool(getattr(driver, "in_transaction", False))

    def say_alive(self) -> None:
        with self._use("saying that a drain lives") as conn:
            if self._noted:
                self._in_flight.renew(conn, self._token)

    def release(self, mailboxes: Collection[Mailbox]) -> None:
        with self._use("releasing claims") as conn:
            self._release(conn, mailboxes)

    def keep_only(self, running: Collection[str], released: Collection[Mailbox]) -> None:
        with self._use("giving entities back") as conn:
            # The note first: a message that is given back must not look as if it were running here.
            if running:
                self._in_flight.note(conn, self._token, running)
            elif self._noted:
                self._in_flight.clear(conn, self._token)
                self._noted = False
            self._release(conn, released)

    def _release(self, conn: Connection, mailboxes: Collection[Mailbox]) -> None:
        free: set[int] = set()
        given_back = {mail.id for mailbox in mailboxes for mail in mailbox.mail} & self._unhandled
        if given_back:
            # What was seen of these entities begins behind the mail that goes back, which must come first.
            self._seen = []
            self._unhandled -= given_back
        for mailbox in mailboxes:
            holders = self._held.get(mailbox.lock_key, set())
            holders.discard(mailbox.address)
            if not holders and self._held.pop(mailbox.lock_key, None) is not None:
                free.add(mailbox.lock_key)
        if free:
            self._locks.release(conn, self._token, free)

    # Commits

    def commit(self, commits: Sequence[EntityCommit], *, last: bool) -> CommitResult:
        with self._use("committing turns") as conn:
            for _ in range(2):
                try:
                    return self._commit(conn, commits, last=last)
                except DBAPIError as exc:
                    if is_unstorable(exc):
                        break
                    if not is_contention(exc):
                        raise
            return self._commit_one_by_one(conn, commits, last=last)

    def _commit(self, conn: Connection, commits: Sequence[EntityCommit], *, last: bool) -> CommitResult:
        clear = self._token if last and self._noted else None
        try:
            if self._commits.is_plain(commits) and self._commits.commit_plain(conn, commits, clear):
                result = CommitResult(lost=frozenset(), refused={})
            else:
                result = self._commits.commit(conn, commits, clear)
        except Refused as exc:
            undone = frozenset(commit.address for commit in commits)
            return CommitResult(frozenset(), exc.outcomes, undone=undone, holders=exc.holders)
        self._noted = self._noted and clear is None
        self._handled(commits, result)
        return result

    def _handled(self, commits: Sequence[EntityCommit], result: CommitResult) -> None:
        won = (commit for commit in commits if commit.address not in result.lost)
        self._unhandled.difference_update(turn.mail.id for commit in won for turn in commit.turns)

    def _commit_one_by_one(self, conn: Connection, commits: Sequence[EntityCommit], *, last: bool) -> CommitResult:
        lost: set[Address] = set()
        undone: set[Address] = set()
        refused: dict[NewMessage, AppendOutcome] = {}
        unstorable: dict[Address, str] = {}
        holders: dict[NewMessage, str] = {}
        for commit in commits:
            try:
                result = self._commit(conn, [commit], last=False)
            except DBAPIError as exc:
                if is_unstorable(exc):
                    unstorable[commit.address] = first_line(exc)
                elif is_contention(exc):
                    lost.add(commit.address)
                else:
                    raise
                continue
            lost |= result.lost
            undone |= result.undone
            refused |= result.refused
            holders.update(result.holders)
        if last and self._noted and not (undone or unstorable):
            self._in_flight.clear(conn, self._token)
            self._noted = False
        return CommitResult(frozenset(lost), refused, undone=frozenset(undone), unstorable=unstorable, holders=holders)

    # A turn with a transaction of its own

    def open_turn(self, mailbox: Mailbox, mail: Mail) -> Any:
        return self._own.open(mailbox, mail)

    def commit_turn(self, commit: EntityCommit) -> CommitResult:
        result = self._own.commit(commit)
        if result.error is None and not result.refused:
            self._handled([commit], result)
        return result

    @property
    def must_not_write(self) -> bool:
        return self._dialect.one_writer and self._own.is_open

    def rollback_turn(self, *, interrupt: bool = False) -> None:
        if not interrupt:
            self._own.rollback()
        elif self._own.is_open:
            with self._use("undoing a turn's transaction") as conn:
                self._own.interrupt(conn)

    def end(self) -> None:
        """Release everything; a session that cannot is closed, which releases it too."""
        self.rollback_turn()
        with self._mutex, self._dialect.guard:
            try:
                if self._noted and not self._conn.invalidated:
                    self._in_flight.clear(self._conn, self._token)
                    self._noted = False
                if not self._conn.invalidated:
                    self._locks.release_all(self._conn, self._token)
                    if self._has_claimed:
                        # Where claims take so long that each drain has time for one, they would do so for ever.
                        self._raise_floors(self._conn)
                    return
            except DBAPIError:
                self._conn.invalidate()
            self._locks.abandon(self._token)
            if self._noted:
                self._in_flight.withdraw(self._conn, self._token, self._unhandled)

    @contextmanager
    def _use(self, doing: str) -> Iterator[Connection]:
        with store_errors(doing), self._mutex, self._dialect.guard:
            if self._conn.invalidated:
                # It would connect anew, and go on without its claims as if nothing had happened.
                raise StoreUnavailable(f"{doing}: the session of this drain has ended, and its claims with it")
            yield self._conn


def _batch(mail: Sequence[Candidate], limit: int) -> list[Candidate]:
    """The oldest mail, up to the first message that ended a process: that one comes alone."""
    return list(takewhile(lambda one: not one.crashes, mail[:limit])) or list(mail[:1])


def _mailboxes(mail: Sequence[tuple[int, Mail]], stored: dict[Address, Any], fence: int) -> list[Mailbox]:
    by_address: dict[Address, list[Mail]] = {}
    keys: dict[Address, int] = {}
    for key, message in mail:
        by_address.setdefault(message.address, []).append(message)
        keys[message.address] = key
    return [
        Mailbox(address, keys[address], stored.get(address, NEVER_STORED), fence, tuple(messages))
        for address, messages in by_address.items()
    ]
