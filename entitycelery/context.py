"""The turn: what a handler sees as `self.turn`, and the port that its calls go to.

A turn notes what its handler does; nothing is written before the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from entitycelery.address import Address
from entitycelery.effects import Send
from entitycelery.envelope import Envelope
from entitycelery.exceptions import AskRefused, ConfigurationError
from entitycelery.message import NewMessage, StoredState

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


class TurnHost(Protocol):
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
    `message_id` is the same in every attempt: pass it along as an idempotency key.
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
    ) -> None:
        self.address = address
        self.id = address.id
        self.message_id = message_id
        self.attempt = attempt
        self.sender = sender
        self.fence = fence
        self.deleted = False
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
        self._outgoing_bytes += sum(len(send.args) for send in sends)
        self._envelope.check_total(len(self.outgoing) + len(sends), self._outgoing_bytes)
        self.outgoing.extend(messages)
        return [message.id for message in messages]

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

    def async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        return self._host.async_result(message_id, decode)

    def _refuse_when_over(self) -> None:
        if self._over:
            raise ConfigurationError(f"the turn of message {self.message_id} is over: nothing more can be part of it")

    def __repr__(self) -> str:
        return f"<Turn {self.address} {self.message_id} attempt {self.attempt}>"
