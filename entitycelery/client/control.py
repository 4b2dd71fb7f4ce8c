"""Control from outside: pending messages are cancelled or rescheduled, dead letters retried or discarded.

Acts at once, in transactions of its own, so none of it can be part of a turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from entitycelery.address import ShardId, is_message_id
from entitycelery.calls import Call, Sent, checked_instant, checked_s
from entitycelery.clock import epoch_from
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError, UnknownEntityType
from entitycelery.message import Change, ChangeOutcome, DeadLetter, DeadLetterFilter
from entitycelery.port import current_port
from entitycelery.registry import Registry
from entitycelery.storage.port import Store
from entitycelery.transports.bell import Bell

# Dead letters of one transaction: its locks are held until all of them are stored again.
_AT_ONCE = 500


class Control:
    """See `entitycelery.control` for what each method promises."""

    def __init__(self, *, store: Store, envelope: Envelope, registry: Registry, bell: Bell) -> None:
        self._store = store
        self._envelope = envelope
        self._registry = registry
        self._bell = bell

    # Pending messages

    def cancel(self, message: str | Sent[object] | Call[..., object]) -> Change:
        _refuse_in_turn("cancel")
        message_id = self._id(message)
        if not is_message_id(message_id):
            return _unknown(message_id)
        return self._ring_after(*self._store.cancel(message_id))

    def reschedule(
        self,
        message: str | Sent[object] | Call[..., object],
        delay_s: float | timedelta | None,
        deliver_at: datetime | None,
    ) -> Change:
        _refuse_in_turn("reschedule")
        if (delay_s is None) == (deliver_at is None):
            raise ConfigurationError("reschedule takes delay_s or deliver_at: give one of them")
        instant = checked_instant("deliver_at", deliver_at)
        at_epoch_s = None if instant is None else epoch_from(instant)
        message_id, after_s = self._id(message), checked_s("delay_s", delay_s)
        if not is_message_id(message_id):
            return _unknown(message_id)
        return self._ring_after(*self._store.reschedule(message_id, delay_s=after_s, deliver_at_epoch_s=at_epoch_s))

    def _id(self, message: str | Sent[object] | Call[..., object]) -> str:
        if isinstance(message, str):
            return message
        if isinstance(message, Sent):
            return message.id
        if not isinstance(message, Call):
            raise ConfigurationError(f"expected a message id, a Sent, or a call with options(key=...), got {message!r}")
        name = self._envelope.unique_name(*message.identity())
        if name is not None:
            return self._store.unique_holder(name) or ""
        found = self._envelope.known_id(*message.identity())
        if found is None:
            raise ConfigurationError(f"{message!r} may mean many messages: give its options(key=...), or an id")
        return found

    def _ring_after(self, change: Change, shards: list[ShardId]) -> Change:
        if shards:
            self._bell.mail_stored(shards)
        return change

    # Dead letters

    def dead_letters(self, wanted: DeadLetterFilter, after: int, limit: int) -> list[DeadLetter]:
        possible = _possible(wanted)
        return [] if possible is None else self._store.dead_letters(possible, self._names(wanted), after, limit)

    def dead_letter_ids(self, wanted: DeadLetterFilter) -> list[str]:
        possible = _possible(wanted)
        return [] if possible is None else self._store.dead_letter_ids(possible, self._names(wanted))

    def retry_dead(self, wanted: DeadLetterFilter) -> list[str]:
        _refuse_in_turn("retry_dead")
        retried: list[str] = []
        for ids in self._chunks(wanted):
            messages = self._store.retry_dead(ids)
            self._bell.mail_stored({self._envelope.shard_of_stored(message) for message in messages})
            retried += [message.id for message in messages]
        return retried

    def discard_dead(self, wanted: DeadLetterFilter) -> list[str]:
        _refuse_in_turn("discard_dead")
        return [found for ids in self._chunks(wanted) for found in self._store.discard_dead(ids)]

    def _chunks(self, wanted: DeadLetterFilter) -> Iterator[Sequence[str]]:
        # Listed once: a letter that dies again meanwhile is not tried for ever.
        ids = self.dead_letter_ids(wanted)
        return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))

    def _names(self, wanted: DeadLetterFilter) -> Sequence[str] | None:
        if wanted.type is None:
            return None
        try:
            kind = self._registry.get(wanted.type)
        except UnknownEntityType:
            # Letters of a type that the code no longer knows are those that somebody must look at.
            return (wanted.type,)
        return (kind.name, *kind.aliases)


def filter_of(wanted: DeadLetterFilter | str | Sequence[str]) -> DeadLetterFilter:
    """A filter from itself, from one id or from many."""
    if isinstance(wanted, DeadLetterFilter):
        return wanted
    return DeadLetterFilter(ids=(wanted,) if isinstance(wanted, str) else tuple(wanted))


def _possible(wanted: DeadLetterFilter) -> DeadLetterFilter | None:
    """The filter without ids that no message can have; None where no letter can fit."""
    texts = (wanted.type, wanted.entity_id, wanted.operation, wanted.reason)
    if any(text is not None and not _is_storable(text) for text in texts):
        return None
    if wanted.ids is None:
        return wanted
    return msgspec.structs.replace(wanted, ids=tuple(one for one in wanted.ids if is_message_id(one)))


def _is_storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _unknown(message_id: str) -> Change:
    return Change(message_id, ChangeOutcome.UNKNOWN, None)


def _refuse_in_turn(verb: str) -> None:
    if current_port.get() is not None:
        raise ConfigurationError(f"{verb} inside a turn would not be part of its commit: do it outside")
