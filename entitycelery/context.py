"""The turn: what a handler sees as `self.turn`, and the port that its calls go to.

A turn notes what its handler does; nothing is written before the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec

from entitycelery.address import Address
from entitycelery.answering import Asker
from entitycelery.clock import utc_from_epoch
from entitycelery.effects import CallOptions, Complete, Send
from entitycelery.envelope import Envelope
from entitycelery.exceptions import AskRefused, ConfigurationError
from entitycelery.expecting import Expecting, SignalHost
from entitycelery.message import Asked, Failure, NewMessage, Status, StoredState
from entitycelery.signals import Continuations, Event, SignalOutcome, Signals
from entitycelery.timers import Armed, Timers

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class TurnHost(SignalHost, Protocol):
    """What a turn needs of the drain that runs it."""

    def load(self, address: Address) -> StoredState:
        """The committed state of another entity."""

    def async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        """Celery's handle of a message."""

    def open_connection(self, turn: Turn) -> Any:
        """The turn's own transaction."""


class Turn:
    """The handling of one message.

    `fence` is larger with every later claim of the entity: pass it along to systems that can refuse an older one.
    `message_id` is the same in every attempt: pass it along as an idempotency key. `timer` is the name of the timer of
    this entity that the message fires, if it is one's; `signal` that of the signal with which the entity goes on.
    """

    def __init__(
        self,
        address: Address,
        message_id: str,
        *,
        attempt: int,
        sender: str | None,
        fence: int,
        envelope: Envelope,
        host: TurnHost,
        timers: Timers,
        signals: Signals,
        reply_to: str | None = None,
    ) -> None:
        self.address = address
        self.id = address.id
        self.message_id = message_id
        self.attempt = attempt
        self.sender = sender
        self.fence = fence
        self.deleted = False
        self.timer: str | None = None
        self.timers = timers
        self.expecting = Expecting(address, Asked(message_id, reply_to), signals, envelope, host)
        self.outgoing: list[NewMessage] = []
        self._envelope = envelope
        self._host = host
        self._over = False
        self._outgoing_bytes = 0
        self._connection: Any = None

    def delete(self) -> None:
        """End the entity with this turn: its state is gone, and its next message finds a new one."""
        self.deleted = True

    @property
    def connection(self) -> Connection:
        """A SQLAlchemy connection whose transaction commits together with this turn, or not at all.

        A turn that uses it commits alone. It cannot be committed or rolled back: return, or raise.
        """
        self._refuse_when_over()
        if self._connection is None:
            self._connection = self._host.open_connection(self)
        return self._connection  # type: ignore[no-any-return]

    @property
    def has_connection(self) -> bool:
        return self._connection is not None

    # Timers

    def begin_firing(self, name: str | None, again: NewMessage | None) -> None:
        """This turn is the firing of a timer, whose next moment, if it has one, is that of the message `again`."""
        self.timer = name
        if again is not None:
            self.outgoing.append(again)

    def set_timer(
        self,
        name: str,
        send: Send,
        *,
        after_s: float | None = None,
        at_epoch_s: float | None = None,
        every_s: float | None = None,
    ) -> None:
        """Have the entity be sent a message later, with `every_s` again and again: see `Entity.remind`."""
        self._refuse_when_over()
        self.cancel_timer(name)
        if at_epoch_s is None:
            wait_s = every_s if after_s is None else after_s
            at_epoch_s = self._host.now_epoch_s() + (wait_s or 0.0)
        options = CallOptions(deliver_at=utc_from_epoch(at_epoch_s))
        [message_id] = self.send([msgspec.structs.replace(send, options=options)])
        self.timers.set(name, Armed(message_id, send.operation, send.args.decode(), at_epoch_s, every_s))

    def cancel_timer(self, name: str) -> bool:
        """Cancel a timer of this entity; whether it was set."""
        self._refuse_when_over()
        return self._cancel_timer(name)

    def timer_due_epoch_s(self, name: str) -> float | None:
        """When a timer of this entity fires next; None if it is not set."""
        armed = self.timers.armed.get(name)
        return None if armed is None else armed.due_epoch_s

    def _cancel_timer(self, name: str) -> bool:
        armed = self.timers.armed.get(name)
        if armed is None:
            return False
        kept = [message for message in self.outgoing if message.id != armed.message_id]
        if len(kept) < len(self.outgoing):
            # Set in this very turn: nothing is stored yet.
            self.outgoing[:] = kept
            self.timers.fired(name)
            return True
        return self.timers.cancel(name)

    def now_epoch_s(self) -> float:
        """The database's present moment, or shortly after it."""
        return self._host.now_epoch_s()

    # Signals

    @property
    def signal(self) -> str | None:
        return self.expecting.goes_on_with

    def expect(self, name: str, continuations: Continuations, timeout_s: float | None) -> str:
        """Go on with one of these operations when the signal is completed: see `Entity.expect`."""
        self._refuse_when_over()
        self._note(self.expecting.expect(name, continuations, timeout_s))
        return self.expecting.token(name)

    def signal_token(self, name: str) -> str:
        """The token of a signal of this entity, before it is expected or while it is."""
        return self.expecting.token(name)

    def withdraw(self, name: str) -> bool:
        """Expect a signal of this entity no more: its token means nothing from the commit on. Whether it was expected.

        A message that it was to answer is answered by another signal, or cancelled.
        """
        self._refuse_when_over()
        if not self.expecting.signals.is_expected(name):
            return False
        self._withdraw([name])
        return True

    def _withdraw(self, names: Sequence[str]) -> None:
        self.expecting.withdraw(names)
        # Of what was expected in this very turn nothing is stored yet.
        self.outgoing[:] = [message for message in self.outgoing if message.id not in self.expecting.signals.disarmed]

    def reply_later(self, by: str | None = None) -> None:
        """Have the message answered by what this turn expects: see `Entity.reply_later`."""
        self._refuse_when_over()
        self.expecting.leave_answer(by)

    def hold_answer(self) -> None:
        """Have the message answered by whichever later turn settles what was held."""
        self._refuse_when_over()
        self.expecting.hold_answer()

    def answer_failure(self, failure: Failure) -> None:
        """Answer the turn's own message with a failure, and commit what the turn did all the same."""
        self._refuse_when_over()
        self.expecting.own_failure = failure

    def settle(self, status: Status, *, result: str | None = None, failure: Failure | None = None) -> None:
        """Answer all messages whose answers earlier turns have held, with this turn's commit."""
        self._refuse_when_over()
        self.expecting.settle(status, result=result, failure=failure)

    def cancel_timers(self) -> None:
        """Cancel all timers of this entity."""
        for name in self.timers.names():
            self._cancel_timer(name)

    def cancel_all(self) -> None:
        """Cancel all timers of this entity, expect nothing more, and leave nobody waiting for an answer."""
        self.cancel_timers()
        self._withdraw(self.expecting.signals.names())
        self.expecting.settle(Status.CANCELLED)

    def end(self) -> None:
        """Nothing more is noted: the outcome is decided."""
        self._over = True

    def port(self) -> Turn:
        return self

    # The port that calls inside the handler go to

    def send(self, sends: Sequence[Send]) -> list[str]:
        self._refuse_when_over()
        for send in sends:
            if send.options.connection is not None:
                raise ConfigurationError(
                    "inside a turn a send is part of the turn's commit: leave options(connection=...) out"
                )
        messages = [self._envelope.message(send, sender=self.address) for send in sends]
        self._note(*messages)
        # Whether one with `unique` is a message of its own is found out by the commit.
        return [message.id if message.unique is None else "" for message in messages]

    def _note(self, *messages: NewMessage) -> None:
        self._outgoing_bytes += sum(len(message.args) for message in messages)
        self._envelope.check_total(len(self.outgoing) + len(messages), self._outgoing_bytes)
        self.outgoing.extend(messages)

    def ask_by_mail(self, send: Send, call: str, shard_group: str) -> None:
        """Send a message whose reply comes as mail to this entity: `answered(call, status, result, failure)`."""
        self._refuse_when_over()
        asker = Asker(shard_group, call, self.address)
        self._note(self._envelope.message(send, sender=self.address, reply_to=str(asker)))

    async def asend(self, sends: Sequence[Send]) -> list[str]:
        return self.send(sends)

    def ask(self, send: Send) -> NoReturn:
        raise AskRefused(
            f"ask inside a turn of {self.address} would wait for a message that is stored only when the turn ends: "
            f"use send, and have {send.address} send its answer back to a handler of this entity",
            address=str(self.address),
        )

    async def aask(self, send: Send) -> NoReturn:
        self.ask(send)

    def result(self, message_id: str, timeout_s: float | None) -> NoReturn:
        raise AskRefused(
            f"waiting for a result inside a turn of {self.address} would wait for ever: the message is stored only "
            "when the turn ends",
            address=str(self.address),
        )

    async def aresult(self, message_id: str, timeout_s: float | None) -> NoReturn:
        self.result(message_id, timeout_s)

    def load(self, address: Address) -> StoredState:
        return self._host.load(address)

    def complete(self, complete: Complete) -> SignalOutcome:
        self._refuse_when_over()
        address, name, number = complete.signal
        message = self._envelope.signal(address, Event(name, number, outcome=complete.outcome))
        self._note(msgspec.structs.replace(message, sender=str(self.address)))
        return SignalOutcome.NOTED

    def signals(self, address: Address) -> Signals:
        return self.expecting.signals if address == self.address else Signals(self.load(address).signals)

    def async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        return self._host.async_result(message_id, decode)

    def _refuse_when_over(self) -> None:
        if self._over:
            raise ConfigurationError(f"the turn of message {self.message_id} is over: nothing more can be part of it")

    def __repr__(self) -> str:
        return f"<Turn {self.address} {self.message_id} attempt {self.attempt}>"
