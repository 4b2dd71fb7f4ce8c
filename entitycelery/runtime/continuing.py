"""What a signal's row means when its turn comes: an operation of the entity, or an end.

completed             the operation `then`, or `on_failure`
due and not completed the operation `on_timeout`
none for this end     a dead letter, which says why
not expected yet      the outcome is kept with the entity
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from entitycelery.entity_type import EntityType
from entitycelery.exceptions import KeyConflict
from entitycelery.failures import failure_from
from entitycelery.message import Answer, Ended, Mail, NewMessage, Status
from entitycelery.runtime.turn import Snapshot, Step
from entitycelery.signals import Event, Signals, event_from


def continued(
    kind: EntityType, mail: Mail, before: Snapshot, now_epoch_s: float, row_of: Callable[[Event], NewMessage]
) -> Mail | Step:
    """The mail that a signal's row stands for; or its end. `row_of` makes the row of one that has its outcome already.

    Raises:
        MalformedMessage: The row cannot be read.
        UnknownOperation: This code has no such operation.
        StateConflict: The entity's signals cannot be read.
    """
    event = event_from(mail.args)
    if event.continuations is None:
        return _early(mail, event, before, now_epoch_s, row_of)
    name = event.continuations.after(event.outcome)
    if name is None:
        step = Step(Ended(mail, Status.DEAD, failure=event.why(str(mail.address))), before)
        return concluded(step, before, now_epoch_s)
    operation, address = kind.operation(name), str(mail.address)
    if event.outcome is None:
        args = b"{}"
    elif event.outcome.status == "succeeded":
        args = operation.continued_with(event.outcome.value)
    else:
        args = operation.continued_with(event.why(address))
    return msgspec.structs.replace(mail, operation=name, args=args.decode())


def concluded(step: Step, before: Snapshot, now_epoch_s: float) -> Step:
    """The step of a turn that left nothing: what its message was to go on with is over all the same, and whom it was
    to answer hears why."""
    if before.signals is None or not isinstance(step.turn, Ended):
        return step
    signals = Signals(before.signals)
    found = signals.expected_by(step.turn.mail.id)
    if found is None:
        return step
    name, expected = found
    signals.end(name, now_epoch_s)
    failure = step.turn.failure
    answers = tuple(Answer(one.message_id, one.reply_to, Status.FAILED, failure=failure) for one in expected.asked)
    ended = msgspec.structs.replace(step.turn, answers=answers)
    return Step(ended, msgspec.structs.replace(step.after, signals=signals.dump()), step.expected)


def _early(
    mail: Mail, event: Event, before: Snapshot, now_epoch_s: float, row_of: Callable[[Event], NewMessage]
) -> Step:
    signals = Signals(before.signals)
    outgoing: tuple[NewMessage, ...] = ()
    found = signals.expected_by(mail.id)
    if found is not None:
        # Expected since it was stored, and under its id, so that nothing else goes on with it.
        name, expected = found
        row = row_of(msgspec.structs.replace(event, continuations=expected.continuations))
        completed = msgspec.structs.replace(expected, message_id=row.id, completed=True, expires_epoch_s=None)
        signals.expect(name, completed, event.number)
        outgoing = (row,)
    elif signals.can_be_completed(event.name, event.number):
        signals.keep_early(event, now_epoch_s)
    else:
        failure = failure_from(KeyConflict(f"the signal {event.name!r} of {mail.address} is over"))
        return Step(Ended(mail, Status.FAILED, failure=failure), before)
    after = msgspec.structs.replace(before, signals=signals.dump())
    return Step(Ended(mail, Status.DONE, result="null", outgoing=outgoing), after)
