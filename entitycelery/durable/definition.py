"""Workflows as users name them: `checkout.options(key=...).start(...)`, and what is asked of one that runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar

import msgspec

from entitycelery.calls import Call, Prepared
from entitycelery.durable.body import Body
from entitycelery.durable.flow import AsyncWorkflow, Workflow
from entitycelery.durable.journal import Entry, walk
from entitycelery.durable.retrying import position_of_retry
from entitycelery.durable.workflow_entity import WorkflowEntity
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError, UnknownWorkflow
from entitycelery.message import DeadLetterFilter, Failure
from entitycelery.operation import Operation
from entitycelery.ref import Ref
from entitycelery.sent import Sent
from entitycelery.signals import SignalOutcome

P = ParamSpec("P")
R = TypeVar("R")

_START = "start"

WorkflowState = Literal["running", "undoing", "suspended", "completed", "failed", "cancelled"]


class WorkflowStatus(msgspec.Struct, frozen=True):
    """How a workflow is doing.

    `running`: its body runs or is about to. `suspended`: it waits, for time to pass, for an answer, or for the signals
    `waits`. `undoing`: it failed or was cancelled, and is compensating.
    """

    status: WorkflowState
    progress: Any
    steps: int
    waits: tuple[str, ...]
    failure: Failure | None
    started_epoch_s: float
    ended_epoch_s: float | None


class WorkflowHost(Protocol):
    """What a workflow needs of the `entities` that it belongs to."""

    def state(self, ref: Any) -> Any: ...
    def status(self, ref: object) -> Any: ...
    def signal(self, target: Any, name: str | None = None) -> Any: ...
    def retry_dead(self, wanted: Any) -> list[str]: ...
    def message_id_of(self, call: Call[..., Any]) -> str: ...


class WorkflowRun(Generic[R]):
    """One workflow, that runs, has ended, or was never started."""

    def __init__(self, definition: WorkflowDefinition[..., R], entity_id: str) -> None:
        self._definition = definition
        self.id = entity_id
        self.ref = Ref(definition.kind, entity_id)

    @property
    def address(self) -> str:
        return str(self.ref)

    def result(self, *, timeout_s: float | None = None) -> R:
        """Wait for what the body returns; of one that was retried, in its newest run.

        Raises:
            ReplyTimeout: It has not ended yet.
            UnknownMessage: It was never started, or ended longer than `entity_reply_retention_s` ago.
            WorkflowCancelled: It was cancelled.
            Exception: What its body raised.
        """
        try:
            return self._sent().result(timeout_s=timeout_s)
        except Exception:
            retried = self._retried()
            if retried is None:
                raise
        return retried.result(timeout_s=timeout_s)

    async def aresult(self, *, timeout_s: float | None = None) -> R:
        """`result`, without blocking the event loop."""
        try:
            return await self._sent().aresult(timeout_s=timeout_s)
        except Exception:
            retried = await asyncio.to_thread(self._retried)
            if retried is None:
                raise
        return await retried.aresult(timeout_s=timeout_s)

    @property
    def operation(self) -> Operation:
        """That of the message which starts it."""
        operation: Operation = self.ref.start.operation
        return operation

    def starting(self, *args: Any, **kwargs: Any) -> Prepared[R]:
        """The call that starts it."""
        prepared: Prepared[R] = self.ref.start.options(key=_START).prepare(*args, **kwargs)
        return prepared

    def _sent(self) -> Sent[R]:
        definition = self._definition
        call = self.ref.start.options(key=_START)
        return Sent(definition.host.message_id_of(call), call.operation, definition.kind.port())

    def _retried(self) -> Sent[R] | None:
        """The retry whose outcome is the newest, if there was one."""
        retried_by = self._definition.host.state(self.ref).retried_by
        return None if retried_by is None else Sent(retried_by, self.operation, self._definition.kind.port())

    def status(self) -> WorkflowStatus:
        """How it is doing.

        Raises:
            UnknownWorkflow: It has not begun.
        """
        state = self._state()
        doing = self._definition.host.status(self.ref)
        waits = tuple(signal.name for signal in doing.signals)
        status: Any = state.status
        if status == "running" and doing.status == "suspended":
            status = "suspended"
        if status == "running" and state.undoing:
            status = "undoing"
        steps = sum(entry.kind == "step" and entry.state in ("done", "failed") for _, entry in walk(state.journal))
        return WorkflowStatus(
            status, state.progress, steps, waits, state.failure, state.started_epoch_s, state.ended_epoch_s
        )

    def history(self) -> list[Entry]:
        """What its body has done so far, in order.

        Raises:
            UnknownWorkflow: It has not begun.
        """
        return list(self._state().journal)

    def timeline(self) -> list[tuple[str, Entry]]:
        """`history` with what the branches of gathers and races did: each with its position, in a branch `3.1.0`.

        Raises:
            UnknownWorkflow: It has not begun.
        """
        return list(walk(self._state().journal))

    def signal(self, name: str, value: object = None) -> SignalOutcome:
        """Complete a signal of this workflow, before it waits for it or while it does."""
        outcome: SignalOutcome = self._definition.host.signal(self.ref, name).succeed(value)
        return outcome

    def cancel(self) -> Sent[None]:
        """Have it end: what it waits for is withdrawn, its compensations run, and its status is `cancelled`.

        A step that runs ends first. One that has ended already stays as it is.
        """
        sent: Sent[None] = self.ref.cancel.send()
        return sent

    def resume(self) -> list[str]:
        """Have the body run again now, once its code is mended: what woke it when it was found to differ from its
        journal is taken up again. The ids of these messages.

        Raises:
            UnknownWorkflow: It has not begun.
        """
        self._state()
        kind = self._definition.kind.name
        letters: list[str] = self._definition.host.retry_dead(DeadLetterFilter(type=kind, entity_id=self.id))
        return letters or [self.ref.go_on.send().id]

    def retry(self, from_step: int | None = None) -> Sent[R]:
        """Have what failed or was cancelled go on from a position of its journal; what stands before it is remembered.

        Without a position: from the last call that failed, or from the beginning if something was undone. Steps that
        run again have another `step_key`. `result()` of what this gives, and of this workflow from then on, is the
        outcome of the new run.

        Raises:
            UnknownWorkflow: It has not begun.
            ConfigurationError: It did not fail, there is no such position, or what was undone would be taken as done.
        """
        state = self._state()
        position_of_retry(self.address, state.status, state.journal, from_step)
        sent: Sent[R] = self.ref.retry.send(from_step)
        return sent

    def _state(self) -> WorkflowEntity:
        state: WorkflowEntity = self._definition.host.state(self.ref)
        if state.status == "new":
            raise UnknownWorkflow(f"{self.address} has not begun", address=self.address)
        return state

    def __repr__(self) -> str:
        return f"<WorkflowRun {self.address}>"


class WorkflowDefinition(Generic[P, R]):
    """A function that is a workflow. Called as it is, with a flow, it is the plain function."""

    def __init__(self, body: Body, kind: EntityType, host: WorkflowHost, key: str | None = None) -> None:
        self.body = body
        self.kind = kind
        self.host = host
        self._key = key
        self.__name__ = body.function.__name__
        self.__doc__ = body.function.__doc__
        self.__wrapped__ = body.function

    def options(self, *, key: str) -> WorkflowDefinition[P, R]:
        """The same, to be started under this key: a second start is the same workflow."""
        return WorkflowDefinition(self.body, self.kind, self.host, key)

    def start(self, *args: P.args, **kwargs: P.kwargs) -> WorkflowRun[R]:
        """Start it; when this returns it is stored and will run. Inside a turn it is part of the turn's commit.

        Raises:
            MalformedMessage: The arguments do not fit the body.
            KeyConflict: A workflow of this key was started with other arguments.
        """
        if self._key is not None:
            run = self.ref(self._key)
            run.ref.start.options(key=_START).send(*args, **kwargs)
            return run
        run = self.ref(str(uuid.uuid4()))
        send = run.starting(*args, **kwargs).send
        options = msgspec.structs.replace(send.options, key_is_new=True)
        self.kind.port().send([msgspec.structs.replace(send, options=options)])
        return run

    def ref(self, key: str) -> WorkflowRun[R]:
        """The workflow of this key."""
        return WorkflowRun(self, key)

    def __call__(self, flow: Workflow | AsyncWorkflow, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.body.function(flow, *args, **kwargs)


BodyFunction = Callable[Concatenate[Workflow, P], R]
AsyncBodyFunction = Callable[Concatenate[AsyncWorkflow, P], Coroutine[Any, Any, R]]


def refuse_misuse(function: object) -> None:
    """Raise for what is no function."""
    if not callable(function) or not hasattr(function, "__name__"):
        raise ConfigurationError(f"@entities.workflow goes on a function, not on {function!r}")
