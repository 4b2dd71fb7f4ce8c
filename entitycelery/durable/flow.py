"""`Workflow` and `AsyncWorkflow`: what the body of a workflow works with, `def` or `async def`."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any, NoReturn, ParamSpec, Protocol, Self, TypedDict, TypeVar, Unpack, cast, overload

from entitycelery.calls import Call, checked_s
from entitycelery.clock import utc_from_epoch
from entitycelery.durable.core import Core, finished
from entitycelery.durable.options import NO_OPTIONS, Options, ParentClosePolicy
from entitycelery.exceptions import ConfigurationError
from entitycelery.handlers import TurnOptions, handler_options

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

_CLOSE_POLICIES = ("cancel", "abandon")


class Startable(Protocol[P, R_co]):
    """A workflow that can be started as a child."""

    __name__: str

    def ref(self, key: str) -> Any: ...
    def start(self, *args: P.args, **kwargs: P.kwargs) -> RunOf[R_co]: ...


class RunOf(Protocol[R_co]):
    """A workflow that gives such a result."""

    def result(self, *, timeout_s: float | None = None) -> R_co: ...


class FlowOptions(TurnOptions, TypedDict, total=False):
    """What `options` takes."""

    timeout_s: float | timedelta | None
    parent_close_policy: ParentClosePolicy


class Flow:
    """What all bodies have: what needs no waiting."""

    def __init__(self, core: Core, options: Options = NO_OPTIONS) -> None:
        self._core = core
        self._options = options

    @property
    def address(self) -> str:
        """The workflow's own address: its name and its key."""
        return self._core.at.address

    @property
    def id(self) -> str:
        """The workflow's key."""
        return self._core.at.id

    def options(self, **options: Unpack[FlowOptions]) -> Self:
        """The same flow, for a call with options: `flow.options(timeout_s=86_400).wait(...)`,
        `flow.options(autoretry_for=(OSError,), max_retries=5).step(...)`.

        Args:
            timeout_s: Longest wait of a `wait`, an `ask` or a `child`; of a `task` after how long it counts as lost.
            parent_close_policy: What becomes of a `child` that is not waited for any more: `cancel` or `abandon`.
            options: How a failed step is tried again, as for `@handler`.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        given = dict(options)
        timeout_s = checked_s("timeout_s", given.pop("timeout_s", None))  # type: ignore[arg-type]
        policy = given.pop("parent_close_policy", None)
        if policy is not None and policy not in _CLOSE_POLICIES:
            raise ConfigurationError(f"parent_close_policy must be cancel or abandon, got {policy!r}")
        retry = handler_options(**given)  # type: ignore[arg-type] # what is left
        return type(self)(self._core, Options(timeout_s, retry, cast("ParentClosePolicy | None", policy)))

    @property
    def step_key(self) -> str:
        """The same text at every attempt of the step that runs now: pass it along as an idempotency key."""
        return self._core.steps.key

    def send(self, call: Call[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Send a message to an entity, once: it is part of the commit in which it is remembered."""
        self._core.waits.send(self._options, call, args, kwargs)

    def compensate(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """If the workflow fails or is cancelled from here on, call a function, as a step. The last one comes first."""
        self._core.steps.compensate(function, args, kwargs)

    def now(self) -> datetime:
        """The instant at which the body came here first."""
        return utc_from_epoch(float(self._core.remembered("now", self._core.at.host.now_epoch_s)))

    def random(self) -> float:
        """A random number from 0 to 1."""
        return float(self._core.remembered("random", random.random))

    def uuid(self) -> uuid.UUID:
        """A random UUID."""
        return uuid.UUID(self._core.remembered("uuid", lambda: str(uuid.uuid4())))

    def version(self, name: str, newest: int) -> int:
        """Which version of a part of the body this workflow has: the newest for one that had not come here when the
        code was changed, 1 for one that had."""
        return self._core.version(name, newest)

    def set_progress(self, progress: object) -> None:
        """What `status()` tells of the workflow, as JSON."""
        self._core.set_progress(progress)

    def continue_as_new(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Begin anew with these arguments and an empty journal, for workflows that go on for ever."""
        self._core.continue_as_new(args, kwargs)


class Workflow(Flow):
    """The workflow, as a body that is `def` sees it."""

    def step(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function once, and remember what it returned or raised.

        It runs again only if the process ends before its result is committed, under the same `step_key`; or if it fails
        with what `options(autoretry_for=...)` names.

        Raises:
            Exception: What the function raised in its last attempt.
        """
        return cast("R", finished(self._core.steps.run(self._options, function, args, kwargs)))

    def sleep(self, duration_s: float | timedelta) -> None:
        """Go on after so many seconds, counted from the first time that the body came here."""
        finished(self._core.waits.sleep(self._options, duration_s))

    def sleep_until(self, instant: datetime) -> None:
        """Go on at an aware instant."""
        finished(self._core.waits.sleep_until(self._options, instant))

    @overload
    def wait(self, name: str) -> Any: ...
    @overload
    def wait(self, name: str, value_type: type[T]) -> T: ...
    def wait(self, name: str, value_type: Any = Any) -> Any:
        """Wait until somebody completes a signal of this workflow; its value.

        Raises:
            SignalTimeout: Not within `options(timeout_s=...)`.
            SignalCancelled: It was cancelled.
            Exception: What it was failed with.
            MalformedMessage: The value is none of the type.
        """
        return finished(self._core.waits.wait(self._options, name, value_type))

    def ask(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Send a message to an entity, and go on with its result; no worker waits for it.

        Raises:
            Exception: What its handler raised.
            MessageCancelled, MessageExpired: It never ran.
            ReplyTimeout: It was not answered within `options(timeout_s=...)`; it may be handled all the same.
        """
        return cast("R", finished(self._core.waits.ask(self._options, call, args, kwargs)))

    def child(self, workflow: Startable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Start another workflow, and go on with its result.

        If this one is cancelled meanwhile, or its time is over, the child is cancelled; not so with
        `options(parent_close_policy="abandon")`.

        Raises:
            Exception: What its body raised.
            ReplyTimeout: It did not end within `options(timeout_s=...)`.
        """
        return cast("R", finished(self._core.waits.child(self._options, workflow, args, kwargs)))

    def task(self, celery_task: Any, *args: Any, **kwargs: Any) -> Any:
        """Send a Celery task, and go on with its result: `flow.task(pack, 5)`, `flow.task(pack.s(5).set(queue="gpu"))`,
        `flow.task("shop.pack", 5)`.

        Any worker of the app may run it, whether or not it hosts entities; it stores the result before it takes its
        next task. If there is none within `options(timeout_s=...)`, by default an hour, the task counts as lost and
        is sent again under the same task id: it runs at least once, and its first result counts.

        Raises:
            Exception: What the task raised.
            celery.exceptions.TaskRevokedError: It was revoked.
        """
        return finished(self._core.waits.task(self._options, celery_task, args, kwargs))

    def gather(self, *branches: Callable[[], T]) -> list[T]:
        """Run several functions as if at the same time, each with its own calls of the flow; what they return, in
        their order: `flow.gather(lambda: flow.task(pack, 1), lambda: flow.task(pack, 2))`.

        While one waits the others go on. Steps run one after the other all the same.

        Raises:
            Exception: What the first of them raised that failed, once all have ended.
        """
        return finished(self._core.branches.gather(self._options, _functions("gather", branches)))

    def race(self, *branches: Callable[[], T]) -> tuple[int, T]:
        """Run several functions as if at the same time, until the first has ended: which one that was, counted from
        0, and what it returned.

        It is remembered which has won. What the others wait for is withdrawn: sleeps and signals are over, children
        are cancelled unless abandoned, answers of messages and tasks are dropped.

        Raises:
            Exception: What the winner raised.
        """
        return finished(self._core.branches.race(self._options, _functions("race", branches)))


class AsyncWorkflow(Flow):
    """The workflow, as a body that is `async def` sees it. Its calls are those of `Workflow`, to be awaited."""

    @overload
    def step(
        self, function: Callable[P, Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def step(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def step(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """`Workflow.step`, of a function that is `def` or `async def`."""
        return self._core.steps.run(self._options, function, args, kwargs)

    def sleep(self, duration_s: float | timedelta) -> Coroutine[Any, Any, None]:
        """`Workflow.sleep`."""
        return self._core.waits.sleep(self._options, duration_s)

    def sleep_until(self, instant: datetime) -> Coroutine[Any, Any, None]:
        """`Workflow.sleep_until`."""
        return self._core.waits.sleep_until(self._options, instant)

    @overload
    def wait(self, name: str) -> Coroutine[Any, Any, Any]: ...
    @overload
    def wait(self, name: str, value_type: type[T]) -> Coroutine[Any, Any, T]: ...
    def wait(self, name: str, value_type: Any = Any) -> Coroutine[Any, Any, Any]:
        """`Workflow.wait`."""
        return self._core.waits.wait(self._options, name, value_type)

    def ask(self, call: Call[P, R], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """`Workflow.ask`."""
        return self._core.waits.ask(self._options, call, args, kwargs)

    def child(self, workflow: Startable[P, R], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """`Workflow.child`."""
        return self._core.waits.child(self._options, workflow, args, kwargs)

    def task(self, celery_task: Any, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """`Workflow.task`."""
        return self._core.waits.task(self._options, celery_task, args, kwargs)

    def gather(self, *branches: Awaitable[T] | Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, list[T]]:
        """`Workflow.gather`, of coroutines: `await flow.gather(flow.task(pack, 1), flow.task(pack, 2))`."""
        return self._core.branches.gather(self._options, branches)

    def race(self, *branches: Awaitable[T] | Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, tuple[int, T]]:
        """`Workflow.race`, of coroutines."""
        return self._core.branches.race(self._options, branches)


def _functions(call: str, branches: tuple[Any, ...]) -> tuple[Any, ...]:
    for branch in branches:
        if not callable(branch):
            raise ConfigurationError(
                f"flow.{call}(...) takes functions without arguments, lambda: flow.ask(...) or "
                f"functools.partial(flow.ask, ...), got {branch!r}"
            )
    return branches
