"""A workflow as an entity: its journal is its state, its messages are what wakes it.

start, retry -> body -> ended: the answer
                     -> suspended: the answer is held, until the turn in which the body ends
go_on, signalled, late, refused, answered, cancel -> body, from the top
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from entitycelery import codec
from entitycelery.clock import utc_from_epoch
from entitycelery.durable.body import Body, Run
from entitycelery.durable.core import finished
from entitycelery.durable.entity_host import EntityHost
from entitycelery.durable.journal import ContinuedAsNew, Entry, Suspended, labelled, walk
from entitycelery.durable.retrying import position_of_retry
from entitycelery.entity import Entity
from entitycelery.exceptions import (
    KeyConflict,
    MessageCancelled,
    MessageExpired,
    NonDeterminism,
    SignalTimeout,
    WorkflowCancelled,
)
from entitycelery.failures import exception_from, failure_from
from entitycelery.handlers import Handler, handler_options
from entitycelery.message import Failure, Status
from entitycelery.signals import failure_of

ENDED = frozenset({"completed", "failed", "cancelled"})

_TIMER = "wake"
_MANY = 100
_BURST_S = 0.1
_ANSWERABLE = frozenset({"ask", "child", "task"})
_EXPECTED = handler_options(throws=(Exception,))
# A body's own errors end the workflow. What else may go wrong must lose no wake-up: it is kept as a dead letter, to be
# retried when the code is mended.
_KEPT = handler_options(autoretry_for=(Exception,), max_retries=0)


class WorkflowEntity(Entity):
    """What every workflow keeps.

    `arguments` are as JSON gives them. `run` counts how often it began anew or was retried. `goes_on`: a message is on
    its way that will run the body. `retried_by` is the message of the last retry, whose reply is the outcome.
    """

    __body__: ClassVar[Body]

    status: str = "new"
    arguments: Any = None
    journal: list[Entry] = []
    versions: dict[str, int] = {}
    run: int = 0
    goes_on: bool = False
    progress: Any = None
    result: Any = None
    failure: Failure | None = None
    cancel_asked: bool = False
    undoing: bool = False
    retried_by: str | None = None
    started_epoch_s: float = 0.0
    ended_epoch_s: float | None = None


# Handlers. Each is `async def` here, and a plain function where the body is one.


async def go_on(self: Any) -> None:
    await _advance(self)


async def signalled(self: Any, value: Any = None) -> None:
    _signal_over(self, value=value)
    await _advance(self)


async def late(self: Any) -> None:
    _signal_over(self, failure=_timed_out(self))
    await _advance(self)


async def refused(self: Any, failure: Failure) -> None:
    _signal_over(self, failure=failure)
    await _advance(self)


async def answered(self: Any, call: str, status: str, result: Any = None, failure: Failure | None = None) -> None:
    entry = labelled(self.journal, self.run, call)
    if entry is None or entry.kind not in _ANSWERABLE or entry.state != "pending":
        # It has gone on without it.
        return
    if status != Status.DONE and failure is None:
        cls = MessageExpired if status == Status.EXPIRED else MessageCancelled
        failure = failure_of(cls, f"{entry.described()} of {self.turn.address}: the message was {status}")
    entry.finish(self.turn.now_epoch_s(), result, failure)
    if "." not in call:
        await _advance(self)
    elif not self.goes_on:
        # Answers to many branches come in bursts: the body runs once for all that are there by then. While many are
        # still to come, nobody waits for one of them to be seen at once.
        self.goes_on = True
        to_come = sum(one.state == "pending" and one.kind in _ANSWERABLE for _, one in walk(self.journal))
        self.go_on.options(delay_s=_BURST_S if to_come >= _MANY else None).send()


async def cancel(self: Any) -> None:
    if self.status == "running" and not self.undoing:
        self.cancel_asked = True
        await _advance(self)


async def retry(self: Any, from_step: int | None = None) -> Any:
    """Begin again from a position of the journal what has failed or was cancelled."""
    del self.journal[position_of_retry(str(self.turn.address), self.status, self.journal, from_step) :]
    self.status, self.failure, self.ended_epoch_s = "running", None, None
    self.cancel_asked, self.undoing = False, False
    self.run, self.retried_by = self.run + 1, self.turn.message_id
    return await _advance(self, is_asked=True)


_WAKINGS = (go_on, signalled, late, refused, answered, cancel)


def entity_class(body: Body) -> type[WorkflowEntity]:
    """The entity class of a workflow."""

    async def start(self: Any, **arguments: Any) -> Any:
        if self.status in ENDED:
            return _outcome_of(self)
        if self.status != "new":
            raise KeyConflict(f"{self.turn.address} was started before", address=str(self.turn.address))
        self.status, self.arguments, self.started_epoch_s = "running", _plain(arguments), self.turn.now_epoch_s()
        return await _advance(self, is_asked=True)

    def handler_of(function: Callable[..., Any], options: Any) -> Handler[Any, Any, Any, Any]:
        own = _like(function, is_async=body.is_async)
        if function is start:
            body.sign_start(own)
        elif function is retry:
            body.sign_outcome(own, from_step=int | None)
        return Handler(own, options)

    members = {
        "__module__": body.function.__module__,
        "__doc__": body.function.__doc__,
        "__body__": body,
        **{function.__name__: handler_of(function, _EXPECTED) for function in (start, retry)},
        **{function.__name__: handler_of(function, _KEPT) for function in _WAKINGS},
    }
    return type(body.name.rpartition(".")[2], (WorkflowEntity,), members)


def _like(function: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """The same handler, as its own function; where the body is no coroutine, so is it none."""

    @functools.wraps(function)
    async def as_coroutine(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await function(self, *args, **kwargs)

    @functools.wraps(function)
    def as_function(self: Any, *args: Any, **kwargs: Any) -> Any:
        return finished(function(self, *args, **kwargs))

    own = as_coroutine if is_async else as_function
    # What it is wrapped around is of the other kind.
    del own.__wrapped__
    own.__signature__ = inspect.signature(function)  # type: ignore[union-attr]
    return own


async def _advance(self: Any, *, is_asked: bool = False) -> Any:
    """Run the body in this turn. `is_asked`: whoever sent the turn's message waits for the outcome."""
    if self.status in ENDED:
        return None
    body, address = type(self).__body__, str(self.turn.address)
    operation = type(self).__entity_type__.operation_of("start")
    arguments = operation.decode(codec.to_json(self.arguments, f"the arguments of {address}"))
    run = Run(
        *(address, self.turn.id, self.journal, self.versions, operation, arguments),
        host=EntityHost(self),
        number=self.run,
        cancelled=self.cancel_asked,
    )
    core = body.core(run)
    self.goes_on = False
    try:
        self.result = await body.run(run, core)
    except Suspended:
        _hold(self, is_asked=is_asked)
        return None
    except ContinuedAsNew as anew:
        # A branch may begin anew while others wait.
        for name, _, _ in self.turn.expecting.signals.pending():
            self.turn.withdraw(name)
        self.journal, self.versions, self.run = [], {}, self.run + 1
        self.arguments = msgspec.json.decode(anew.arguments)
        self.go_on.send()
        _hold(self, is_asked=is_asked)
        return None
    except NonDeterminism:
        # The code is wrong, not the workflow: other code may go on with it.
        raise
    except Exception as exc:  # noqa: BLE001 - the user's body
        return _end(self, "cancelled" if isinstance(exc, WorkflowCancelled) else "failed", exc, is_asked=is_asked)
    finally:
        self.undoing = core.steps.undoing
        if core.progress is not msgspec.UNSET:
            self.progress = core.progress
        _set_timer(self)
    return _end(self, "completed", None, is_asked=is_asked)


def _hold(self: Any, *, is_asked: bool) -> None:
    if is_asked:
        self.turn.hold_answer()


def _set_timer(self: Any) -> None:
    """One timer, for the first moment that the journal waits for."""
    moments = [entry.due_epoch_s for _, entry in walk(self.journal) if entry.state == "pending" and entry.due_epoch_s]
    if not moments:
        self.turn.cancel_timer(_TIMER)
    elif self.turn.timer_due_epoch_s(_TIMER) != min(moments):
        self.remind(_TIMER, self.go_on, at=utc_from_epoch(min(moments)))


def _end(self: Any, status: str, exc: Exception | None, *, is_asked: bool) -> Any:
    self.status, self.ended_epoch_s = status, self.turn.now_epoch_s()
    self.failure = None if exc is None else failure_from(exc)
    if not is_asked and exc is None:
        self.turn.settle(Status.DONE, result=codec.to_json(self.result, "a result").decode())
    elif not is_asked:
        self.turn.settle(Status.FAILED, failure=self.failure)
    elif exc is not None:
        # A turn that raises leaves nothing: the journal would be lost.
        self.turn.answer_failure(self.failure)
    return self.result if is_asked else None


def _outcome_of(self: Any) -> Any:
    if self.failure is not None:
        raise exception_from(self.failure, address=str(self.turn.address), message_id=self.turn.message_id)
    return self.result


def _signal_over(self: Any, *, value: Any = None, failure: Failure | None = None) -> None:
    for _, entry in walk(self.journal):
        if entry.kind == "wait" and entry.name == self.turn.signal and entry.state == "pending":
            entry.finish(self.turn.now_epoch_s(), value, failure)


def _timed_out(self: Any) -> Failure:
    sentence = f"the signal {self.turn.signal!r} of {self.turn.address} was not completed in time"
    return failure_of(SignalTimeout, sentence)


def _plain(value: Any) -> Any:
    return codec.from_json(codec.to_json(value, "what a workflow keeps"))
