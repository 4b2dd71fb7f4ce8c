"""`@entities.workflow`: durable functions of an app."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from entitycelery.address import quoted
from entitycelery.calls import Call
from entitycelery.durable.body import Body
from entitycelery.durable.definition import AsyncBodyFunction, BodyFunction, WorkflowDefinition, refuse_misuse
from entitycelery.durable.workflow_entity import entity_class
from entitycelery.entity import Entity
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError
from entitycelery.parts import Parts

P = ParamSpec("P")
R = TypeVar("R")


class _Decorator(Protocol):
    @overload
    def __call__(self, function: AsyncBodyFunction[P, R]) -> WorkflowDefinition[P, R]: ...
    @overload
    def __call__(self, function: BodyFunction[P, R]) -> WorkflowDefinition[P, R]: ...


class Workflows(ABC):
    """The part of `EntityCelery` that has workflows."""

    def __init__(self) -> None:
        super().__init__()
        self._workflows: dict[str, WorkflowDefinition[..., Any]] = {}

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    @abstractmethod
    def _register_workflow(self, cls: type[Entity], name: str) -> EntityType:
        """Register the entity class of a workflow."""

    @overload
    def workflow(self, function: AsyncBodyFunction[P, R], /) -> WorkflowDefinition[P, R]: ...
    @overload
    def workflow(self, function: BodyFunction[P, R], /) -> WorkflowDefinition[P, R]: ...
    @overload
    def workflow(self, /, *, name: str | None = None) -> _Decorator: ...
    def workflow(self, function: Any = None, /, *, name: str | None = None) -> Any:
        """Make a function `def checkout(flow: Workflow, order)` a workflow, or one that is `async def` and takes an
        `AsyncWorkflow`.

        Args:
            name: Its name on the wire, if not the function's.

        Raises:
            ConfigurationError: It takes no flow, an annotation of it cannot be JSON, or its name belongs to another.
        """

        def define(body_function: BodyFunction[P, R]) -> WorkflowDefinition[P, R]:
            refuse_misuse(body_function)
            body = Body(
                body_function, name or body_function.__name__, lambda: self._ready().settings.workflow_max_steps
            )
            kind = self._register_workflow(entity_class(body), body.name)
            definition: WorkflowDefinition[P, R] = WorkflowDefinition(body, kind, self)  # type: ignore[arg-type]
            self._workflows[body.name] = definition
            return definition

        return define if function is None else define(function)

    def workflow_named(self, name: str) -> WorkflowDefinition[..., Any]:
        """The workflow of this name on the wire.

        Raises:
            ConfigurationError: There is none.
        """
        if name not in self._workflows:
            known = ", ".join(sorted(self._workflows)) or "none"
            raise ConfigurationError(f"there is no workflow {quoted(name)}; there are: {known}")
        return self._workflows[name]

    def message_id_of(self, call: Call[..., Any]) -> str:
        """The id of the message of a call with a key."""
        return self._ready().envelope.known_id(*call.identity()) or ""
