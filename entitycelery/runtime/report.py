"""What a drain tells of its turns: a span for each, and a log record for each that did not simply succeed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from entitycelery.address import Address, ShardId
from entitycelery.message import Ended, Mail, Retried, Status
from entitycelery.runtime.turn import Step
from entitycelery.telemetry import Span, happened

log = logging.getLogger("entitycelery.turn")


class TurnSpan(Span):
    """`entity.turn`. Describes itself only when somebody wants to know: most turns are neither logged nor traced."""

    __slots__ = ("_mail", "_shard_of")

    def __init__(self, mail: Mail, shard_of: Callable[[Address], ShardId]) -> None:
        super().__init__("entity.turn", {})
        self._mail = mail
        self._shard_of = shard_of

    @property
    def fields(self) -> Mapping[str, Any]:
        return {**described(self._mail, self._shard_of), **self._fields}


def described(mail: Mail, shard_of: Callable[[Address], ShardId]) -> dict[str, Any]:
    """The fields by which records, spans and events name a turn."""
    return {
        "entity_address": str(mail.address),
        "message_id": mail.id,
        "shard": str(shard_of(mail.address)),
        "operation": mail.operation,
        "attempt": mail.attempt,
    }


def outcome(step: Step) -> str:
    """In a word what became of a turn: the status of its reply, `parked` where a later turn answers, `retried`, or
    `put_off` for other code."""
    if isinstance(step.turn, Retried):
        return "retried" if step.turn.counts else "put_off"
    if step.turn.parked:
        return "parked"
    return step.turn.status.value


def committed(steps: list[Step], shard_of: Callable[[Address], ShardId]) -> None:
    """Tell of committed turns that did not simply succeed."""
    for step in steps:
        turn = step.turn
        if isinstance(turn, Ended) and turn.status is Status.DONE:
            continue
        fields = described(turn.mail, shard_of)
        happened(f"entity.turn.{outcome(step)}", **fields)
        if isinstance(turn, Retried) and not turn.counts:
            log.warning("put off, since this code does not know it: %s", _why(turn), extra=fields)
        elif isinstance(turn, Retried):
            log.info("turn failed, tried again in %.3g s: %s", turn.after_s, _why(turn), extra=fields)
        elif turn.status is Status.EXPIRED:
            log.info("message expired before its turn", extra=fields)
        elif turn.status is Status.FAILED and step.expected:
            log.info("turn failed as its handler may: %s", _why(turn), extra=fields)
        elif turn.status is Status.FAILED:
            log.error("turn failed: %s%s", _why(turn), _traceback(turn), extra=fields)
        else:
            log.error("message given up, it is a dead letter now: %s%s", _why(turn), _traceback(turn), extra=fields)


def _why(turn: Ended | Retried) -> str:
    failure = turn.failure
    return f"{failure.type.replace(':', '.')}: {failure.message}" if failure else "no reason given"


def _traceback(turn: Ended) -> str:
    return f"\n{turn.failure.traceback}" if turn.failure and turn.failure.traceback else ""
