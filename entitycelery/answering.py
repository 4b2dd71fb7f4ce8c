"""Answers as mail: an entity that asks in a turn gets the reply of its message as a message of its own, later.

Such a message says in `reply_to` whom to answer, in place of a channel. Whatever ends it, a turn, its expiry, a cancel,
stores the answer in the same transaction.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from entitycelery.address import (
    Address,
    ShardId,
    fingerprint,
    keyed_message_id,
    lock_key,
    shard_of,
    valid_entity_id,
    valid_type_name,
)
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import Answer, Failure, NewMessage, Status

ANSWERED = "answered"
"""The operation of an answer: `answered(call, status, result, failure)`."""
_HEAD = "entity "


class Asker(NamedTuple):
    """Who asked: an entity, and by which text without blanks it knows what for."""

    shard_group: str
    call: str
    address: Address

    def shard(self, shards_per_group: int) -> ShardId:
        """Where its mail goes."""
        return shard_of(self.shard_group, self.address.id, shards_per_group)

    def __str__(self) -> str:
        return f"{_HEAD}{self.shard_group} {self.call} {self.address}"


def asker_of(reply_to: str | None) -> Asker | None:
    """The entity that a `reply_to` means; None if it means a channel, or nobody."""
    if reply_to is None or not reply_to.startswith(_HEAD):
        return None
    try:
        group, call, address = reply_to.removeprefix(_HEAD).split(" ", 2)
        type_name, _, entity_id = address.partition("/")
        return Asker(group, call, Address(valid_type_name(type_name), valid_entity_id(entity_id)))
    except (ValueError, ConfigurationError):
        # Somebody wrote it by hand: the message ends all the same, and answers nobody.
        return None


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """The arguments of an answer."""

    call: str
    status: Status
    result: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


def answer_mail(answer: Answer, cluster: str, shards_per_group: int) -> NewMessage | None:
    """The message with which a reply goes to the entity that asked; None where no entity did."""
    asker = asker_of(answer.reply_to)
    if asker is None:
        return None
    result = msgspec.Raw((answer.result or "null").encode())
    said = msgspec.json.encode(Said(asker.call, answer.status, result, answer.failure)).decode()
    address = asker.address
    return NewMessage(
        id=keyed_message_id(cluster, address, ANSWERED, answer.message_id),
        fingerprint=fingerprint(address, ANSWERED, answer.message_id.encode()),
        shard=asker.shard(shards_per_group),
        address=address,
        lock_key=lock_key(cluster, address),
        operation=ANSWERED,
        args=said,
        keyed=True,
    )
