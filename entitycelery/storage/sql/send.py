"""What senders do at the store: see the port for what each method promises.

A send is one transaction of its own, which is all or nothing, or belongs to the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy.engine import Connection

from entitycelery.exceptions import MailboxFull
from entitycelery.message import REFUSALS, Appended, AppendOutcome, NewMessage
from entitycelery.signals import SignalOutcome
from entitycelery.storage.sql.dialects.base import Dialect, Locks
from entitycelery.storage.sql.engines import callers_connection
from entitycelery.storage.sql.hashing import Hashing
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.moment import Moments
from entitycelery.storage.sql.signal import SignalRows
from entitycelery.storage.sql.statement import fetch, rollback, run, store_errors
from entitycelery.storage.sql.unique_key import UniqueKeys


class Sends:
    """The sends to one cluster. `use` lends a connection, and says of its errors what was being done."""

    def __init__(
        self,
        use: Callable[[str], AbstractContextManager[Connection]],
        dialect: Dialect,
        locks: Locks,
        hashing: Hashing,
        messages: Messages,
        unique_keys: UniqueKeys,
        moments: Moments,
        signals: SignalRows,
    ) -> None:
        self._use = use
        self._dialect = dialect
        self._locks = locks
        self._hashing = hashing
        self._messages = messages
        self._unique_keys = unique_keys
        self._moments = moments
        self._signals = signals

    def append(
        self, messages: Sequence[NewMessage], nonce: str, *, again: bool, connection: Any
    ) -> list[AppendOutcome]:
        if connection is not None:
            return self._append_for_caller(callers_connection(connection), messages, nonce)
        with self._use("storing messages") as conn:
            if len(messages) == 1 and not (again or messages[0].keyed or messages[0].capacity is not None):
                outcomes = self._messages.append(conn, messages, nonce)
            else:
                with self._all_or_nothing(conn) as undo:
                    outcomes = self._messages.append(conn, messages, nonce, again=again)
                    if not REFUSALS.isdisjoint(outcomes):
                        undo()
            self._moments.tell(conn, self._moments.soon(messages))
            return outcomes

    def append_unique(
        self, messages: Sequence[NewMessage], nonce: str, *, again: bool, connection: Any
    ) -> list[Appended]:
        if connection is not None:
            return self._append_unique_for_caller(callers_connection(connection), messages, nonce)
        with self._use("storing messages") as conn:
            with self._all_or_nothing(conn) as undo:
                outcome = self._unique_keys.append(conn, messages, nonce, again=again)
                if outcome.is_refused:
                    undo()
            self._moments.tell(conn, self._moments.soon(messages) + outcome.delayed)
        return outcome.appended

    def _append_for_caller(self, conn: Connection, messages: Sequence[NewMessage], nonce: str) -> list[AppendOutcome]:
        with self._for_caller(conn, messages) as undo:
            outcomes = self._messages.append(conn, messages, nonce)
            if not REFUSALS.isdisjoint(outcomes):
                undo()
        return outcomes

    def _append_unique_for_caller(self, conn: Connection, messages: Sequence[NewMessage], nonce: str) -> list[Appended]:
        with self._for_caller(conn, messages) as undo:
            outcome = self._unique_keys.append(conn, messages, nonce)
            if outcome.is_refused:
                undo()
            else:
                self._moments.tell_at_commit(conn, outcome.delayed)
        return outcome.appended

    @contextmanager
    def _for_caller(self, conn: Connection, messages: Sequence[NewMessage]) -> Iterator[Callable[[], None]]:
        """Around what belongs to the caller's transaction; gives what undoes it."""
        with store_errors("storing messages on the caller's connection"):
            self._dialect.check_caller(conn, keyed=any(m.keyed for m in messages))
            with conn.begin_nested() as savepoint:
                yield savepoint.rollback
                if not savepoint.is_active:
                    return
            due = {self._hashing.shard(m.address, m.shard) for m in messages if not m.is_delayed}
            self._dialect.after_caller_commit(conn, sorted(due))
            self._moments.tell_at_commit(conn, self._moments.soon(messages))

    def append_and_ask(self, message: NewMessage, nonce: str, *, flushed: bool) -> bool:
        with self._use("storing a message") as conn:
            question = self._locks.question(message.shard)
            if question is None:
                self._messages.append_certainly(conn, message, nonce, flushed=flushed)
                return bool(self._locks.attended(conn, [message.shard]))
            return self._messages.append_certainly(conn, message, nonce, question, flushed=flushed)

    def append_unflushed(self, message: NewMessage, nonce: str) -> None:
        with self._use("storing a message") as conn:
            self._messages.append_certainly(conn, message, nonce, flushed=False)

    def flush(self) -> None:
        if self._dialect.flush:
            with self._use("waiting for the disk") as conn:
                fetch(conn, self._dialect.flush)

    def complete(self, message: NewMessage, nonce: str, *, again: bool) -> SignalOutcome:
        with self._use("completing a signal") as conn, self._all_or_nothing(conn) as undo:
            [outcome] = self._messages.append(conn, [message], nonce, again=again)
            if outcome is AppendOutcome.FULL:
                undo()
                raise MailboxFull(f"the mailbox of {message.address} is full", address=str(message.address))
            if self._signals.complete(conn, [message], nonce):
                return SignalOutcome.COMPLETED
            return SignalOutcome.EARLY if outcome is AppendOutcome.STORED else SignalOutcome.OVER

    @contextmanager
    def _all_or_nothing(self, conn: Connection) -> Iterator[Callable[[], None]]:
        """A transaction that commits unless it is undone by what this gives."""
        undone: list[bool] = []
        run(conn, self._dialect.begin)
        try:
            yield lambda: undone.append(True)
        except BaseException:
            rollback(conn)
            raise
        run(conn, "ROLLBACK" if undone else "COMMIT")
