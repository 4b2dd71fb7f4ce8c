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
from entitycelery.effects import Send
from entitycelery.message import NewMessage


class Envelope:
    """Makes messages of one cluster."""

    def __init__(self, cluster: str, shards_per_group: int, default_capacity: int | None) -> None:
        self.cluster = cluster
        self.shards_per_group = shards_per_group
        self._default_capacity = default_capacity
        self._lock_key = functools.lru_cache(10_000)(functools.partial(lock_key, cluster))

    def shard(self, address: Address) -> ShardId:
        """The shard that an entity belongs to."""
        return shard_of("default", address.id, self.shards_per_group)

    def lock_key(self, address: Address) -> int:
        return self._lock_key(address)

    def message(self, send: Send, *, sender: Address | None = None, reply_to: str | None = None) -> NewMessage:
        """The message of a call. A key or a task id makes it the same message each time."""
        options = send.options
        if options.key is not None:
            message_id = keyed_message_id(self.cluster, send.address, send.operation, options.key)
        elif options.task_id is not None:
            message_id = explicit_message_id(options.task_id)
        else:
            message_id = new_message_id()
        return NewMessage(
            id=message_id,
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
