"""One turn: load, handle, decide. Nothing here touches the store."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from entitycelery.context import Turn
from entitycelery.entity_type import DELETE, EntityType
from entitycelery.exceptions import MalformedMessage, Quarantined, SerializationFailed
from entitycelery.failures import failure_from
from entitycelery.limits import NO_LIMITS, Limits
from entitycelery.message import Ended, Mail, Retried, Status
from entitycelery.operation import Operation, RetryPolicy
from entitycelery.port import current_port


class Snapshot(msgspec.Struct, frozen=True):
    """An entity's state, timers and signals between two turns: JSON, and the version of the class that wrote the state;
    None: no entity, no timers, no signals."""

    state: str | None
    state_version: int
    timers: str | None = None
    signals: str | None = None


class Step(msgspec.Struct, frozen=True):
    """The outcome of one turn and the state after it; `expected`: the handler says that it may fail so."""

    turn: Ended | Retried
    after: Snapshot
    expected: bool = False

    @property
    def size(self) -> int:
        """About how many bytes a commit writes for it."""
        turn, state = self.turn, self.after.state
        size = len(state) if state is not None else 0
        if isinstance(turn, Ended):
            size += len(turn.result or "")
            for message in turn.outgoing:
                size += len(message.args)
        return size


class Prepared(msgspec.Struct, frozen=True):
    """A turn that is ready to call its handler."""

    kind: EntityType
    entity: Any
    operation: Operation
    arguments: dict[str, Any]


def refused_outright(mail: Mail, max_crashes: int) -> Ended | None:
    """The end of a message that must not run: it expired, or it ended its process too often."""
    if mail.crashes >= max_crashes:
        error = Quarantined(
            f"the message ended the process that handled it {mail.crashes} times and is set aside",
            address=str(mail.address),
            message_id=mail.id,
        )
        return Ended(mail, Status.DEAD, failure=failure_from(error))
    return Ended(mail, Status.EXPIRED) if mail.expired else None


def prepare(kind: EntityType, mail: Mail, before: Snapshot, turn: Turn) -> Prepared:
    """Load the entity and decode the message.

    Raises:
        UnknownOperation, MalformedMessage, StateConflict: The message fails for it.
    """
    operation = kind.deletion if mail.operation == DELETE else kind.operation(mail.operation)
    arguments = operation.decode(mail.args)
    model = kind.model
    # An entity can be deleted whatever its state has become: it is not loaded for it.
    is_new = before.state is None or operation is kind.deletion
    entity = model.new() if is_new else model.load(before.state or "", before.state_version)
    entity.__dict__["_turn"] = turn
    return Prepared(kind, entity, operation, arguments)


def call(prepared: Prepared, turn: Turn) -> Any:
    """Run a `def` handler with the turn as its port."""
    token = current_port.set(turn)
    try:
        return prepared.operation.function(prepared.entity, **prepared.arguments)
    finally:
        current_port.reset(token)


async def acall(prepared: Prepared, turn: Turn) -> Any:
    """Run an `async def` handler with the turn as its port."""
    token = current_port.set(turn)
    try:
        return await prepared.operation.function(prepared.entity, **prepared.arguments)
    finally:
        current_port.reset(token)


def done(mail: Mail, prepared: Prepared, turn: Turn, result: Any, limits: Limits = NO_LIMITS) -> Step:
    """The step of a handler that returned.

    Raises:
        SerializationFailed, StateConflict: The result or the state cannot be stored; the message fails for it.
        ConfigurationError: It is to be answered later, and by nothing.
    """
    expecting, kind = turn.expecting, prepared.kind
    replies_later = expecting.replies_later and not turn.deleted
    parked = replies_later and expecting.hand_on()
    failure = expecting.own_failure
    encoded = None if replies_later or failure else prepared.operation.encode_result(result, limits)
    state = None
    if turn.deleted:
        turn.cancel_all()
    else:
        state = kind.model.dump(prepared.entity, limits).decode()
    timers, signals = turn.timers.dump(), expecting.signals.dump()
    for what, stored in (("timers", timers), ("signals", signals)):
        if stored is not None and (complaint := limits.against_state(stored.encode())):
            raise SerializationFailed(f"the {what} of {kind.name}: {complaint}")
    ended = Ended(
        mail,
        Status.FAILED if failure else Status.DONE,
        result=encoded,
        failure=failure,
        outgoing=tuple(turn.outgoing),
        disarmed=(*turn.timers.disarmed, *expecting.signals.disarmed),
        parked=parked,
        answers=expecting.answers(encoded),
    )
    return Step(ended, Snapshot(state, kind.model.state_version, timers, signals), expected=failure is not None)


def failed(
    kind: EntityType | None,
    mail: Mail,
    before: Snapshot,
    exc: BaseException,
    jitter: Callable[[float, float], float] = random.uniform,
) -> Step:
    """The step of a turn that raised: tried again where its handler says so, else a failed reply; no state change."""
    operation = kind.operations.get(mail.operation) if kind else None
    policy = operation.options.retry if operation else RetryPolicy()
    failure = failure_from(exc)
    if not isinstance(exc, policy.autoretry_for) or isinstance(exc, MalformedMessage):
        expected = operation is not None and isinstance(exc, operation.options.throws)
        return Step(Ended(mail, Status.FAILED, failure=failure), before, expected)
    if policy.max_retries is not None and mail.attempt >= policy.max_retries:
        return Step(Ended(mail, Status.DEAD, failure=failure), before)
    blocking = kind is not None and kind.on_failure == "block"
    return Step(Retried(mail, policy.delay_s(mail.attempt, jitter), blocking, failure), before)
