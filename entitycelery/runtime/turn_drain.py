"""What a turn may ask of the drain that runs it: see `TurnHost` for what each method promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from entitycelery.address import Address
from entitycelery.context import Turn
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import Mail, StoredState
from entitycelery.runtime.batch import EntityRun
from entitycelery.signal_token import SignalId

if TYPE_CHECKING:
    from entitycelery.runtime.host import Host


class TurnDrain:
    """The drain, as one of its turns sees it."""

    __slots__ = ("_host", "_mail", "_open", "_run")

    def __init__(
        self, host: Host, open_connection: Callable[[EntityRun, Mail], Any], run: EntityRun, mail: Mail
    ) -> None:
        self._host = host
        self._open = open_connection
        self._run = run
        self._mail = mail

    def load(self, address: Address) -> StoredState:
        return self._host.store.state(address)

    def async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        return self._host.async_result(message_id, decode)

    def now_epoch_s(self) -> float:
        return self._run.firing.now_epoch_s(self._mail)

    def signal_token(self, signal: SignalId) -> str:
        return self._host.tokens.make(signal)

    def open_connection(self, turn: Turn) -> Any:
        if self._run.running and self._run.running.task is not None:
            raise ConfigurationError("self.turn.connection blocks, so it is for `def` handlers only")
        return self._open(self._run, self._mail)
