"""Where a body is: its next call, against its journal, and how it comes to wait."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, get_type_hints

import msgspec

from entitycelery import codec
from entitycelery.clock import epoch_from, utc_from_epoch
from entitycelery.durable.journal import Entry, Journal, Kind, Suspended
from entitycelery.durable.task_call import TaskCall
from entitycelery.effects import Send
from entitycelery.exceptions import ConfigurationError, MalformedMessage, WorkflowCancelled


class FlowHost(Protocol):
    """What the body's calls need of the workflow's entity, within its turn.

    Moments need nothing: after each run the entity sets one timer, for the first of those that its journal waits for.
    """

    def now_epoch_s(self) -> float:
        """The database's present moment, or shortly after it."""

    def go_on(self) -> None:
        """Have the body run again in a turn of its own."""

    def expect(self, name: str, timeout_s: float | None) -> None:
        """Have the body run again when the signal is completed."""

    def withdraw(self, name: str) -> None:
        """Take an `expect` back."""

    def ask(self, label: str, send: Send) -> None:
        """Send a message, and have the body run again when it is answered."""

    def send_task(self, label: str, task: TaskCall, task_id: str) -> None:
        """Send a Celery task under this id, and have the body run again when its result is there."""


class Watcher(Protocol):
    """Told of every call, by a test that wants to know whether a body does the same each time."""

    def called(self, label: str, what: str, arguments: tuple[Any, ...]) -> None: ...


def _nothing() -> None:
    """What is to be done about what only the journal knows of."""


class Cursor:
    """The place of a body in its journal, or in that of a branch.

    `owner`: of a body that is `async def` the task that runs it: another's calls would come in no certain order.
    `cancelled`: whatever would wait is refused.
    """

    def __init__(
        self,
        address: str,
        entity_id: str,
        journal: Journal,
        host: FlowHost,
        *,
        cancelled: bool,
        watcher: Watcher | None,
    ) -> None:
        self.address = address
        self.id = entity_id
        self.host = host
        self.journal = journal
        self.cancelled = cancelled
        self.owner: asyncio.Task[Any] | None = None
        self._watcher = watcher

    def next(self, kind: Kind, name: str, *arguments: Any) -> tuple[str, Entry]:
        """The label and the entry of the call that the body makes now.

        Raises:
            Suspended, WorkflowCancelled: It waits no more, since its branch has lost or the workflow was cancelled.
            NonDeterminism, ConfigurationError: As `Journal.next`; or it is made from another task.
        """
        if self.owner is not None and asyncio.current_task() is not self.owner:
            raise ConfigurationError(
                f"{Entry(kind, name).described()} of {self.address} is called from a task of its own: calls of a body "
                "that are to run at the same time go through flow.gather(...) or flow.race(...), and one that may not "
                "take for ever through flow.options(timeout_s=...)"
            )
        label, entry = self.journal.next(kind, name, self.host.now_epoch_s())
        if self._watcher is not None:
            self._watcher.called(label, entry.described(), arguments)
        if entry.state == "withdrawn":
            self._refuse_if_cancelled()
            raise Suspended
        return label, entry

    def _refuse_if_cancelled(self) -> None:
        if self.cancelled:
            raise WorkflowCancelled(f"{self.address} was cancelled", address=self.address)

    def begin(self, entry: Entry, withdraw: Callable[[], object] = _nothing) -> bool:
        """Whether this call, which is not over, begins now. It waits no more if the workflow is cancelled, and does
        not begin in a branch that is over."""
        if self.cancelled:
            if entry.armed:
                withdraw()
            entry.state = "withdrawn"
            self._refuse_if_cancelled()
        if self.journal.is_over:
            self.wait(entry, withdraw)
        begins, entry.armed = not entry.armed, True
        return begins

    def wait(self, entry: Entry, withdraw: Callable[[], object] = _nothing) -> NoReturn:
        """Leave the body, or the branch; `withdraw` ends the waiting, if it is to end otherwise."""
        self.journal.waiting.append((entry, withdraw))
        raise Suspended

    async def resolved(self, value: Any) -> Any:
        """What a user's function gave, awaited if it is to be."""
        if not inspect.isawaitable(value):
            return value
        if self.owner is None:
            if inspect.iscoroutine(value):
                value.close()
            raise ConfigurationError(
                f"the body of {self.address} is a plain def and called something that is async: make it async def"
            )
        return await value

    def top(self) -> Journal:
        """The journal that no branch has."""
        journal = self.journal
        while journal.outer is not None:
            journal = journal.outer
        return journal


def name_of(function: Callable[..., Any]) -> str:
    """How a function is called in the journal."""
    return getattr(function, "__name__", type(function).__name__)


def moment_s(epoch_s: float) -> float:
    """A moment as a message has it: else it could come a fraction of a microsecond too early, and never again."""
    return epoch_from(utc_from_epoch(epoch_s))


def return_type(function: Callable[..., Any]) -> Any:
    """What a function is annotated to return; anything, where that cannot be known."""
    try:
        return get_type_hints(function).get("return", Any)
    except (NameError, TypeError):
        return Any


def typed(value: Any, value_type: Any, what: str) -> Any:
    """A remembered value as its type has it.

    Raises:
        MalformedMessage: It is none.
    """
    try:
        return msgspec.convert(value, value_type, strict=True)
    except msgspec.ValidationError as exc:
        raise MalformedMessage(f"{what}: {codec.said(exc)}") from exc
