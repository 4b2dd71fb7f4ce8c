"""What a turn does about signals: expects and withdraws them, goes on with one, leaves its answer to one.

Notes, as all of a turn does; nothing is written before the commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from entitycelery.address import Address
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError
from entitycelery.limits import valid_name
from entitycelery.message import Answer, Asked, Failure, NewMessage, Status
from entitycelery.signal_token import SignalId
from entitycelery.signals import NEVER_S, Continuations, Event, Expected, Signals


class SignalHost(Protocol):
    """What this needs of the drain that runs the turn."""

    def now_epoch_s(self) -> float:
        """The database's present moment, or shortly after it."""

    def signal_token(self, signal: SignalId) -> str:
        """The token of a signal."""


class Expecting:
    """The signals of one turn. `own` is its message: what is to be answered if its answer is left for later."""

    def __init__(self, address: Address, own: Asked, signals: Signals, envelope: Envelope, host: SignalHost) -> None:
        self.signals = signals
        self.goes_on_with: str | None = None
        self.replies_later = False
        self.own_failure: Failure | None = None
        """What answers the turn's message in place of a result, though the turn commits what it did."""
        self._address = address
        self._own = own
        self._envelope = envelope
        self._host = host
        self._new: list[str] = []
        self._answers_by: str | None = None
        self._holds = False
        self._settled: list[Answer] = []
        self._asked: tuple[Asked, ...] = ()
        self._unanswered: list[Asked] = []

    def begin(self) -> None:
        """If the message is a signal's, that is expected no more, and this turn answers whom it was to answer."""
        found = self.signals.expected_by(self._own.message_id)
        if found is not None:
            self.goes_on_with, expected = found
            self._asked = expected.asked
            self.signals.end(self.goes_on_with, self._host.now_epoch_s())

    def expect(self, name: str, continuations: Continuations, timeout_s: float | None) -> NewMessage:
        """Go on with one of these operations when the signal is completed; the row that waits, or goes on at once."""
        if self.signals.is_expected(name):
            raise ConfigurationError(
                f"{self._address} expects the signal {name!r} already: withdraw it first, by self.turn.withdraw(...)"
            )
        now_epoch_s, entry = self._host.now_epoch_s(), self.signals.entry(name)
        event = Event(name, self.signals.coming(name), continuations)
        if entry is not None and entry.early is not None:
            event = msgspec.structs.replace(event, outcome=entry.early)
            row = self._envelope.signal_completed(self._address, event)
            expected = Expected(row.id, continuations, now_epoch_s, completed=True)
        else:
            due_epoch_s = now_epoch_s + (NEVER_S if timeout_s is None else timeout_s)
            row = self._envelope.signal(self._address, event, deliver_at_epoch_s=due_epoch_s)
            expected = Expected(row.id, continuations, now_epoch_s, None if timeout_s is None else due_epoch_s)
        self.signals.expect(name, expected, event.number)
        self._new.append(name)
        # An entity's own waiting is no mail that its mailbox could be too full for.
        return msgspec.structs.replace(row, capacity=None)

    def token(self, name: str) -> str:
        number = self.signals.coming(valid_name("a signal", name))
        return self._host.signal_token(SignalId(self._address, name, number))

    def withdraw(self, names: Iterable[str]) -> None:
        """Expect these no more. Whom nobody will answer now is to be told."""
        for name in names:
            self._unanswered += self.signals.withdraw(name, self._host.now_epoch_s())

    def leave_answer(self, by: str | None) -> None:
        """The answer of the message is left to this signal, or to any that the turn expects."""
        self.replies_later, self._answers_by = True, by

    def hold_answer(self) -> None:
        """The answer of the message is left to a later turn of the entity, which will settle it."""
        self.replies_later = self._holds = True

    def settle(self, status: Status, *, result: str | None = None, failure: Failure | None = None) -> None:
        """Answer all messages whose answers earlier turns have held."""
        answers = [Answer(one.message_id, one.reply_to, status, result, failure) for one in self.signals.release()]
        self._settled += answers

    def hand_on(self) -> bool:
        """At the end of a turn that left its answer for later: give what is to be answered to what it expects, or to a
        later turn. Whether its own message must wait for that.

        Raises:
            ConfigurationError: It expects nothing.
        """
        is_continuation = self.goes_on_with is not None
        asked, self._asked = self._asked if is_continuation else (self._own,), ()
        if self._holds:
            self.signals.hold(asked)
            return not is_continuation
        wanted = self._new if self._answers_by is None else [self._answers_by]
        expects = [name for name in wanted if name in self._new and self.signals.is_expected(name)]
        if not expects:
            raise ConfigurationError(
                f"reply_later() of {self._address} leaves its answer to a signal, and the turn expects none: call "
                "self.expect(...) in the same turn"
            )
        for name in expects:
            self.signals.answer_with(name, asked)
        return not is_continuation

    def answers(self, result: str | None) -> tuple[Answer, ...]:
        """What this turn answers besides its own message, with its result."""
        answered = [Answer(one.message_id, one.reply_to, Status.DONE, result=result) for one in self._asked]
        cancelled = [Answer(one.message_id, one.reply_to, Status.CANCELLED) for one in self._unanswered]
        return (*answered, *cancelled, *self._settled)
