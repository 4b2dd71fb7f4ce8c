"""From a call to the row that will be stored: id, shard, lock key and fingerprint."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec

from entitycelery.address import (
    Address,
    ShardId,
    explicit_message_id,
    fingerprint,
    keyed_message_id,
    lock_key,
    new_message_id,
    shard_of,
    unique_name,
)
from entitycelery.answering import answer_mail
from entitycelery.clock import epoch_from
from entitycelery.effects import CallOptions, Send
from entitycelery.exceptions import ConfigurationError, MalformedMessage
from entitycelery.limits import DEFAULT_LIMITS, Limits
from entitycelery.message import Answer, NewMessage
from entitycelery.signals import SIGNAL, Event
from entitycelery.unique import unique_of


class Envelope:
    """Makes messages of one cluster."""

    def __init__(
        self,
        cluster: str,
        default_capacity: int | None,
        limits: Limits = DEFAULT_LIMITS,
        *,
        shards_per_group: Callable[[], int],
        group_of: Callable[[Address], str],
    ) -> None:
        """Make it.

        Args:
            shards_per_group: Asked anew for each message, since a reshard changes it while we live.
            group_of: The shard group of an entity, by its type.
        """
        self.cluster = cluster
        self.limits = limits
        self._shards_per_group = shards_per_group
        self._group_of = group_of
        self._default_capacity = default_capacity
        self._lock_key = functools.lru_cache(10_000)(functools.partial(lock_key, cluster))

    def shard(self, address: Address) -> ShardId:
        """The shard that an entity belongs to.

        Raises:
            UnknownEntityType: Its type is not registered here, so its group is not known.
            ConfigurationError: Its type's own function gave no group.
        """
        return self.shard_in(self._group_of(address), address)

    def shard_in(self, group: str, address: Address) -> ShardId:
        """The shard of an entity whose group is known, from a row or from a drain that works on it."""
        return shard_of(group, address.id, self._shards_per_group())

    def shard_of_stored(self, message: NewMessage) -> ShardId:
        """Where a message is that was stored just now: elsewhere than it says if a reshard came in between."""
        return self.shard_in(message.shard.group, message.address)

    def lock_key(self, address: Address) -> int:
        return self._lock_key(address)

    def known_id(self, address: Address, operation: str, options: CallOptions) -> str | None:
        """The id that a key or a task id makes, the same one each time; None where neither is given.

        A key with `unique` makes none: each message that holds it has an id of its own.
        """
        if options.unique is not None:
            return None
        if options.key is not None:
            return keyed_message_id(self.cluster, address, operation, options.key)
        return None if options.task_id is None else explicit_message_id(options.task_id)

    def unique_name(self, address: Address, operation: str, options: CallOptions) -> str | None:
        """The name of a key that is sent with `unique`; None where it is not."""
        if options.unique is None or options.key is None:
            return None
        return unique_name(self.cluster, address, operation, options.key)

    def message(self, send: Send, *, sender: Address | None = None, reply_to: str | None = None) -> NewMessage:
        """The message of a call. A key or a task id makes it the same message each time.

        Raises:
            MalformedMessage: The arguments are larger or deeper than the limits allow.
            ConfigurationError: The id is longer, the type's own function gave no group, or the options do not fit.
            UnknownEntityType: The type is not registered here.
        """
        self._check(send)
        options = send.options
        unique = unique_of(
            *(options.unique, options.unique_for_s),
            key=options.key,
            task_id=options.task_id,
            delay_s=options.delay_s,
        )
        name = self.unique_name(send.address, send.operation, options)
        return NewMessage(
            id=self.known_id(send.address, send.operation, options) or new_message_id(),
            fingerprint=name or fingerprint(send.address, send.operation, send.args),
            shard=self.shard(send.address),
            address=send.address,
            lock_key=self._lock_key(send.address),
            operation=send.operation,
            args=send.args.decode(),
            keyed=(options.key is not None and not options.key_is_new) or options.task_id is not None,
            sender=None if sender is None else str(sender),
            reply_to=reply_to,
            delay_s=options.delay_s,
            deliver_at_epoch_s=None if options.deliver_at is None else epoch_from(options.deliver_at),
            expires_s=options.expires_s,
            expires_at_epoch_s=None if options.expires_at is None else epoch_from(options.expires_at),
            capacity=send.capacity if send.capacity is not None else self._default_capacity,
            unique=unique,
        )

    def signal(self, address: Address, event: Event, *, deliver_at_epoch_s: float | None = None) -> NewMessage:
        """The row of a signal: the same id whoever stores it, the entity that expects it or somebody who completes it.

        Raises:
            MalformedMessage, ConfigurationError, UnknownEntityType: As `message`.
        """
        encoded = msgspec.json.encode(event)
        round_of_name = f"{event.number} {event.name}"
        send = Send(address=address, operation=SIGNAL, args=encoded, options=CallOptions(key=round_of_name))
        outcome = None if event.outcome is None else msgspec.json.encode(event.outcome).decode()
        return msgspec.structs.replace(
            self.message(send),
            fingerprint=fingerprint(address, SIGNAL, round_of_name.encode()),
            deliver_at_epoch_s=deliver_at_epoch_s,
            completes=outcome,
        )

    def answer(self, answer: Answer) -> NewMessage | None:
        """The message with which a reply goes to the entity that asked; None where no entity did."""
        return answer_mail(answer, self.cluster, self._shards_per_group())

    def signal_completed(self, address: Address, event: Event) -> NewMessage:
        """The row of a signal whose outcome was there before it was expected: due at once, with an id of its own."""
        row = self.signal(address, event)
        return msgspec.structs.replace(row, id=new_message_id(), keyed=False, completes=None, capacity=None)

    def check_total(self, count: int, size: int) -> None:
        """Refuse to store more at once than one transaction can take.

        Raises:
            MalformedMessage: So many messages have too many bytes.
        """
        if complaint := self.limits.against_total(count, size):
            raise MalformedMessage(complaint)

    def _check(self, send: Send) -> None:
        if complaint := self.limits.against_id(send.address.id):
            raise ConfigurationError(f"an entity of type {send.address.type} {complaint}")
        if complaint := self.limits.against_payload(send.args):
            what = f"the arguments of {send.operation} of {send.address}"
            raise MalformedMessage(f"{what}: {complaint}", address=str(send.address))
