"""The place where references hand their calls to.

Inside a turn the port is the turn, which notes a send for its commit; outside it is the client, which stores it.
References know only this protocol, so that entities need none of the layers above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from entitycelery.address import Address
from entitycelery.effects import Complete, Send
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import StoredState
from entitycelery.signals import SignalOutcome, Signals


class Port(Protocol):
    """Takes sends, waits for replies, reads committed states. Results are JSON."""

    def send(self, sends: Sequence[Send]) -> list[str]:
        """Store, or note, messages; return their ids in order, empty where only the commit finds out which it is."""

    async def asend(self, sends: Sequence[Send]) -> list[str]:
        """`send`, without blocking the event loop."""

    def ask(self, send: Send) -> str:
        """Send and wait for the result."""

    async def aask(self, send: Send) -> str:
        """`ask`, without blocking the event loop."""

    def result(self, message_id: str, timeout_s: float | None) -> str:
        """Wait for the result of a stored message."""

    async def aresult(self, message_id: str, timeout_s: float | None) -> str:
        """`result`, without blocking the event loop."""

    def load(self, address: Address) -> StoredState:
        """The committed state of an entity."""

    def complete(self, complete: Complete) -> SignalOutcome:
        """Complete a signal, or note that."""

    def signals(self, address: Address) -> Signals:
        """What an entity expects: as committed, or of the entity whose turn this is."""

    def async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        """Celery's handle of a message, whose `get()` gives the decoded result."""


current_port: ContextVar[Port | None] = ContextVar("entitycelery_port", default=None)
"""The turn that is running here, if any."""

_default: list[Callable[[], Port]] = []


def set_default_port(source: Callable[[], Port]) -> None:
    """Use `source` for entity types that belong to no particular app (`shared_entity`)."""
    _default[:] = [source]


def default_port() -> Port:
    """The port of the current app.

    Raises:
        ConfigurationError: No app has been made yet.
    """
    if not _default:
        raise ConfigurationError("there is no EntityCelery yet: create one with EntityCelery(app) first")
    return _default[0]()
