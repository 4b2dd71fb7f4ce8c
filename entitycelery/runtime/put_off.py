"""Mail that this process's code does not know: left for a worker whose code does, for a while.

While old and new code run side by side, mail for the new reaches the old and the other way round. To fail it would
lose it for the worker next door, so it is put off and its attempts are not counted. What nobody knew for
`entity_deploy_window_s` is a dead letter.
"""

from __future__ import annotations

from entitycelery.entity_type import EntityType
from entitycelery.exceptions import EntityError, MalformedMessage, StateConflict, UnknownEntityType, UnknownOperation
from entitycelery.failures import failure_from
from entitycelery.message import Ended, Mail, Retried, Status, Unknown
from entitycelery.runtime.turn import Snapshot, Step

SHORTEST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


def is_unknown(kind: EntityType | None, before: Snapshot, exc: EntityError) -> bool:
    """Whether a turn that could not begin may be one for other code than this."""
    if isinstance(exc, UnknownEntityType | UnknownOperation | MalformedMessage):
        return True
    return isinstance(exc, StateConflict) and _is_newer(kind, before)


def put_off(kind: EntityType | None, mail: Mail, before: Snapshot, exc: EntityError, window_s: float) -> Step:
    """The step of a message that this code does not know: again later, or a dead letter after `window_s`."""
    since_epoch_s = mail.read_at_epoch_s if mail.unknown_since_epoch_s is None else mail.unknown_since_epoch_s
    waited_s = mail.read_at_epoch_s - since_epoch_s
    failure = failure_from(exc)
    if waited_s >= window_s:
        return Step(Ended(mail, Status.DEAD, failure=failure), before)
    # Where this code can run nothing of the entity, nothing behind the message would run either: its order is kept.
    blocking = kind is None or _is_newer(kind, before) or kind.on_failure == "block"
    unknown = Unknown(
        reason=failure.reason,
        type=failure.type,
        message=failure.message,
        args=failure.args,
        unknown_since_epoch_s=since_epoch_s,
    )
    return Step(Retried(mail, _pause_s(waited_s, window_s), blocking, unknown, counts=False), before)


def _pause_s(waited_s: float, window_s: float) -> float:
    # Often at first, when the other worker is probably there already; then by the quarter of what it has waited.
    return min(max(SHORTEST_PAUSE_S, waited_s / 4), LONGEST_PAUSE_S, window_s - waited_s)


def _is_newer(kind: EntityType | None, before: Snapshot) -> bool:
    return kind is not None and before.state is not None and before.state_version > kind.model.state_version
