"""How the calls of a body work, whether it is `def` or `async def`: everything here is a coroutine, and only a step can
make one wait. Every call is remembered in the journal.

A call that is over gives what it gave before. One that has to wait ends the turn; whatever it waits for sends the
workflow a message, and the body is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import msgspec

from entitycelery import codec
from entitycelery.durable.branches import Branches
from entitycelery.durable.cursor import Cursor
from entitycelery.durable.journal import ContinuedAsNew, Kind
from entitycelery.durable.steps import Steps
from entitycelery.durable.waits import Waits
from entitycelery.operation import Operation

T = TypeVar("T")


class Core:
    """One run of a body."""

    def __init__(self, at: Cursor, versions: dict[str, int], operation: Operation) -> None:
        self.at = at
        self.steps = Steps(at)
        self.waits = Waits(at)
        self.branches = Branches(at)
        self.progress: Any = msgspec.UNSET
        self._versions = versions
        self._operation = operation

    def end(self) -> None:
        """The body has ended, in whatever way.

        Raises:
            NonDeterminism: It did something else than its journal says.
        """
        self.at.journal.end()

    def refuse_divergence(self) -> None:
        """The body waits.

        Raises:
            NonDeterminism: It did something else than its journal says, and went on.
        """
        if (divergence := self.at.journal.bounds.divergence) is not None:
            raise divergence

    def remembered(self, kind: Kind, make: Callable[[], Any]) -> Any:
        _, entry = self.at.next(kind, "")
        if entry.state == "pending":
            entry.finish(self.at.host.now_epoch_s(), make())
        return entry.value

    def set_progress(self, progress: object) -> None:
        self.progress = codec.from_json(codec.to_json(progress, f"the progress of {self.at.address}"))

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        raise ContinuedAsNew(self._operation.encode(args, kwargs).decode())

    def plain_result(self, result: object) -> Any:
        """What the body returned as JSON has it.

        Raises:
            SerializationFailed: It is none, or not what the body is annotated with.
        """
        return codec.from_json(self._operation.encode_result(result).encode())

    def version(self, name: str, newest: int) -> int:
        if name not in self._versions:
            self._versions[name] = 1 if self.at.journal.is_replaying else newest
        return self._versions[name]


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("a plain body awaits nothing")
