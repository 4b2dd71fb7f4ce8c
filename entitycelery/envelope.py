"""From a call to the row that will be stored: id, shard, lock key and fingerprint."""

from __future__ import annotations

import functools

from entitycelery.address import (
    Address,
    ShardId,
    explicit_message_id,
    fingerprint,
    keyed_message_id,
    lock_key,
    new_message_id,
    shard_of,
)
from entitycelery.clock import epoch_from
from entitycelery.effects import CallOptions, Send
from entitycelery.exceptions import ConfigurationError, MalformedMessage
from entitycelery.limits import DEFAULT_LIMITS, Limits
from entitycelery.message import NewMessage


class Envelope:
    """Makes messages of one cluster."""

    def __init__(
        self, cluster: str, shards_per_group: int, default_capacity: int | None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.cluster = cluster
        self.limits = limits
        self.shards_per_group = shards_per_group
        self._default_capacity = default_capacity
        self._lock_key = functools.lru_cache(10_000)(functools.partial(lock_key, cluster))

    def shard(self, address: Address) -> ShardId:
        """The shard that an entity belongs to."""
        return shard_of("default", address.id, self.shards_per_group)

    def lock_key(self, address: Address) -> int:
        return self._lock_key(address)

    def known_id(self, address: Address, operation: str, options: CallOptions) -> str | None:
        """The id that a key or a task id makes, the same one each time; None where neither is given."""
        if options.key is not None:
            return keyed_message_id(self.cluster, address, operation, options.key)
        return None if options.task_id is None else explicit_message_id(options.task_id)

    def message(self, send: Send, *, sender: Address | None = None, reply_to: str | None = None) -> NewMessage:
        """The message of a call. A key or a task id makes it the same message each time.

        Raises:
            MalformedMessage: The arguments are larger or deeper than the limits allow.
            ConfigurationError: The id is longer.
        """
        self._check(send)
        options = send.options
        return NewMessage(
            id=self.known_id(send.address, send.operation, options) or new_message_id(),
            fingerprint=fingerprint(send.address, send.operation, send.args),
            shard=self.shard(send.address),
            address=send.address,
            lock_key=self._lock_key(send.address),
            operation=send.operation,
            args=send.args.decode(),
            keyed=options.key is not None or options.task_id is not None,
            sender=None if sender is None else str(sender),
            reply_to=reply_to,
            delay_s=options.delay_s,
            deliver_at_epoch_s=None if options.deliver_at is None else epoch_from(options.deliver_at),
            expires_s=options.expires_s,
            capacity=send.capacity if send.capacity is not None else self._default_capacity,
        )

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
