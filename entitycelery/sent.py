"""What a call gives back once it is sent."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from entitycelery.exceptions import ConfigurationError
from entitycelery.operation import Operation
from entitycelery.port import Port

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class AsyncResult(Protocol[R_co]):
    """The part of Celery's AsyncResult that a typed caller needs; at run time it is Celery's own class."""

    id: str

    def get(self, timeout: float | None = None) -> R_co: ...
    def ready(self) -> bool: ...
    def successful(self) -> bool: ...
    def failed(self) -> bool: ...


class Sent(Generic[R]):
    """A stored message whose reply can be waited for, here or from any process that knows its `id`."""

    __slots__ = ("_id", "_operation", "_port")

    def __init__(self, message_id: str, operation: Operation, port: Port) -> None:
        self._id = message_id
        self._operation = operation
        self._port = port

    @property
    def id(self) -> str:
        """The id of the message.

        Raises:
            ConfigurationError: It was sent with `unique` inside a turn, whose commit will find out which one it is.
        """
        return known_id(self._id, self._operation)

    def result(self, *, timeout_s: float | None = None) -> R:
        """Wait for the handler's result.

        Args:
            timeout_s: Longest wait; None means `entity_ask_timeout_s`.

        Raises:
            ReplyTimeout: Not answered yet; the message stays stored.
            UnknownMessage, MessageExpired, MessageCancelled: There will be no result.
            Exception: What the handler raised, as its own class where that can be imported, else HandlerFailed.
        """
        result: R = self._operation.decode_result(self._port.result(self.id, timeout_s))
        return result

    async def aresult(self, *, timeout_s: float | None = None) -> R:
        """`result`, without blocking the event loop."""
        result: R = self._operation.decode_result(await self._port.aresult(self.id, timeout_s))
        return result

    def __repr__(self) -> str:
        return f"<Sent {self._operation.label} {self._id or 'with the commit'}>"


def known_id(message_id: str, operation: Operation) -> str:
    """The id of a message that was sent.

    Raises:
        ConfigurationError: It is not known yet.
    """
    if not message_id:
        raise ConfigurationError(
            f"inside a turn {operation.label} with options(unique=...) has no id: only the turn's commit finds out "
            "whether it is a message of its own"
        )
    return message_id
