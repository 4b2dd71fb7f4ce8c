"""The function of a workflow: how it is run from the top against its journal."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from entitycelery.durable.core import Core
from entitycelery.durable.cursor import Cursor, FlowHost, Watcher
from entitycelery.durable.flow import AsyncWorkflow, Workflow
from entitycelery.durable.journal import Bounds, ContinuedAsNew, Entry, Journal, Suspended
from entitycelery.exceptions import ConfigurationError
from entitycelery.operation import Operation


class Run(NamedTuple):
    """What one run of a body begins with. It changes the journal and the versions."""

    address: str
    entity_id: str
    journal: list[Entry]
    versions: dict[str, int]
    operation: Operation
    arguments: dict[str, Any]
    host: FlowHost
    number: int
    cancelled: bool


class Inspector(Protocol):
    """A test that wants to know of every run."""

    def watcher(self, run: Run) -> Watcher:
        """Who is told of its calls."""

    async def ran(self, body: Body, run: Run, ended: Any) -> None:
        """A run is over: its result, or the exception with which it was left."""


class Body:
    """The function, and how its arguments and its result are written."""

    inspector: ClassVar[Inspector | None] = None
    """Of all bodies of the process, while a test has one."""

    def __init__(self, function: Callable[..., Any], name: str, most_steps: Callable[[], int]) -> None:
        self.function = function
        self.name = name
        self.is_async = inspect.iscoroutinefunction(function)
        self._signature = inspect.signature(function)
        parameters = list(self._signature.parameters.values())
        if not parameters:
            raise ConfigurationError(f"the workflow {name} takes the flow as its first argument: def {name}(flow, ...)")
        try:
            self._hints = dict(inspect.get_annotations(function, eval_str=True))
        except (NameError, TypeError) as exc:
            raise ConfigurationError(f"an annotation of the workflow {name} cannot be resolved: {exc}") from exc
        self._hints.pop(parameters[0].name, None)
        self._most_steps = most_steps

    def sign_start(self, function: Any) -> None:
        """Have a function take what the body takes behind the flow, and return what it returns."""
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [itself, *list(self._signature.parameters.values())[1:]]
        function.__signature__ = self._signature.replace(parameters=parameters)
        function.__annotations__ = self._hints

    def sign_outcome(self, function: Any, **hints: Any) -> None:
        """Have a function return what the body returns."""
        returned = {"return": self._hints["return"]} if "return" in self._hints else {}
        function.__annotations__ = {**hints, **returned}

    def core(self, run: Run, *, is_over: bool = False) -> Core:
        """The calls of a run; in one that `is_over` nothing new happens."""
        bounds = Bounds(run.journal, self._most_steps(), run.address, run.number)
        journal = Journal(run.journal, bounds, is_over=is_over)
        watcher = None if self.inspector is None else self.inspector.watcher(run)
        at = Cursor(run.address, run.entity_id, journal, run.host, cancelled=run.cancelled, watcher=watcher)
        return Core(at, run.versions, run.operation)

    async def run(self, run: Run, core: Core) -> Any:
        """Run it from the top; its result, as plain JSON values.

        Raises:
            Suspended, ContinuedAsNew: It did not end.
            Exception: What it raised, after what it had done was compensated.
        """
        if self.inspector is None:
            return await self.call(run, core)
        try:
            ended = await self.call(run, core)
        except (Suspended, ContinuedAsNew, Exception) as exc:
            await self.inspector.ran(self, run, exc)
            raise
        await self.inspector.ran(self, run, ended)
        return ended

    async def call(self, run: Run, core: Core) -> Any:
        """`run`, without telling anybody."""
        flow: Any = AsyncWorkflow(core) if self.is_async else Workflow(core)
        if self.is_async:
            core.at.owner = asyncio.current_task()
        try:
            returned = self.function(flow, **run.arguments)
            result = core.plain_result(await returned if self.is_async else returned)
        except (Suspended, ContinuedAsNew):
            core.refuse_divergence()
            raise
        except Exception:
            core.end()
            await core.steps.undo_all()
            raise
        core.end()
        return result
