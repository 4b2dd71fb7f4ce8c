"""Who is meant: entity addresses, shards, lock keys and message ids.

Everything here is a wire format: rows and queues written by every release rely on these hashes and names.
Never change one without a migration.
"""

from __future__ import annotations

import os
import re
import time
import uuid
import zlib
from hashlib import blake2b
from typing import NamedTuple

from entitycelery.exceptions import ConfigurationError
from entitycelery.limits import LARGEST_ID_BYTES

MAX_TASK_ID_BYTES = 255
_SHOWN = 60
_TYPE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,199}\Z")
_GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,99}\Z")
_CLUSTER_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
_KEY_NAMESPACE = uuid.UUID("5b3c1c52-51a6-5a58-9d6c-0f6f2a4e7d10")


class Address(NamedTuple):
    """`type` and `id` of one entity; written `Account/alice`."""

    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"


class ShardId(NamedTuple):
    """A shard of a shard group; written `default.17`."""

    group: str
    number: int

    def __str__(self) -> str:
        return f"{self.group}.{self.number}"


def parse_shard(text: str) -> ShardId:
    """The shard written as `group.number`."""
    group, _, number = text.rpartition(".")
    return ShardId(group, int(number))


def parse_address(text: str) -> Address:
    """The address written as `Type/id`; the id may contain slashes.

    Raises:
        ConfigurationError: There is no slash, or a part is not valid.
    """
    type_name, slash, entity_id = text.partition("/")
    if not slash:
        raise ConfigurationError(f"an address is written Type/id, got {quoted(text)}")
    return Address(valid_type_name(type_name), valid_entity_id(entity_id))


def valid_type_name(name: str) -> str:
    """`name`, when it can name an entity type: letters, digits, `_`, `.`, `-`, at most 200."""
    if not _TYPE_NAME.match(name):
        raise ConfigurationError(
            "an entity type is named by letters, digits, '_', '.' and '-', starting with a letter, at most 200 in all, "
            f"got {quoted(name)}"
        )
    return name


def quoted(text: str) -> str:
    """`text` in quotes, and if it is long its beginning: what somebody sent may have any length."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text):,} characters)"


def valid_entity_id(entity_id: str | int) -> str:
    """`entity_id` as text: not empty, no NUL, no lone surrogate, and of a length that some setting can allow.

    What `entity_max_id_bytes` allows is checked when something is sent there: a reference needs no settings.
    """
    if isinstance(entity_id, bool) or not isinstance(entity_id, str | int):
        raise ConfigurationError(f"an entity id is a str or an int, got {type(entity_id).__name__}")
    try:
        text = str(entity_id)
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise ConfigurationError(f"an entity id must be encodable as UTF-8, got {quoted(text)}") from exc
    except ValueError as exc:
        # Python refuses to write out integers of thousands of digits.
        raise ConfigurationError(f"an entity id has at most {LARGEST_ID_BYTES:,} bytes, got a longer integer") from exc
    if not 0 < size <= LARGEST_ID_BYTES or "\0" in text:
        raise ConfigurationError(
            f"an entity id has 1 to {LARGEST_ID_BYTES} bytes of UTF-8 and no NUL, got {size:,} bytes: {quoted(text)}"
        )
    return text


def is_message_id(text: str) -> bool:
    """Whether a message can have this id: printable, and at most 255 bytes."""
    return text.isprintable() and 0 < len(text.encode()) <= MAX_TASK_ID_BYTES


def valid_cluster(name: str) -> str:
    """`name`, when it can name a cluster, its database schema, queues and channels."""
    if not _CLUSTER_NAME.match(name):
        raise ConfigurationError(
            f"entity_cluster has up to 32 lower-case letters, digits and '_', starting with a letter, got {name!r}"
        )
    return name


def is_group_name(name: str) -> bool:
    """Whether a shard group can have this name: letters, digits, `_` and `-`, not a `-` first, at most 100."""
    return bool(_GROUP_NAME.match(name))


def shard_of(group: str, entity_id: str, shards_per_group: int) -> ShardId:
    """The shard that an entity id belongs to: CRC-32 of its UTF-8, modulo the number of shards."""
    return ShardId(group, zlib.crc32(entity_id.encode()) % shards_per_group)


def queue_name(cluster: str, shard: ShardId) -> str:
    """The Celery queue of a shard."""
    return f"entity.{cluster}.{shard.group}.{shard.number}"


def lock_key(cluster: str, address: Address) -> int:
    """The signed 64-bit key of an entity's claim lock."""
    digest = blake2b(_framed(cluster, address.type, address.id), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def lock_space(cluster: str, kind: str) -> int:
    """The signed 32-bit first key of the two-integer locks of one kind, disjoint from every claim key."""
    digest = blake2b(_framed(cluster, kind), digest_size=4).digest()
    return int.from_bytes(digest, "big", signed=True)


def new_message_id() -> str:
    """A random id that sorts by time (UUID version 7, RFC 9562), so that new rows touch few index pages."""
    stamp = time.time_ns() // 1_000_000
    value = (stamp << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (7 << 76)
    value = value & ~(0x3 << 62) | (2 << 62)
    return str(uuid.UUID(int=value))


def keyed_message_id(cluster: str, address: Address, operation: str, key: str) -> str:
    """The id that a key stands for: UUID version 5 over cluster, type, id, operation and key."""
    if not key:
        raise ConfigurationError("a key must not be empty")
    return str(uuid.uuid5(_KEY_NAMESPACE, _framed(cluster, address.type, address.id, operation, key).hex()))


def unique_name(cluster: str, address: Address, operation: str, key: str) -> str:
    """The name of a key that is held like a mutex; its messages have it in the place of a fingerprint.

    A fingerprint is hexadecimal, so none looks like such a name: see the index `message_unique`.
    """
    if not key:
        raise ConfigurationError("a key must not be empty")
    return f"unique:{blake2b(_framed(cluster, address.type, address.id, operation, key), digest_size=16).hexdigest()}"


def is_unique_name(fingerprint: str) -> bool:
    """Whether the fingerprint of a message is the name of a key that is held like a mutex."""
    return fingerprint.startswith("unique:")


def explicit_message_id(task_id: str) -> str:
    """A caller's own `task_id` as a message id: as it is, hashed when longer than 255 bytes."""
    encoded = task_id.encode(errors="surrogatepass")
    if not encoded or b"\0" in encoded:
        raise ConfigurationError(f"a task_id must not be empty or contain NUL, got {quoted(task_id)}")
    if len(encoded) <= MAX_TASK_ID_BYTES and task_id.isprintable():
        return task_id
    return str(uuid.uuid5(_KEY_NAMESPACE, encoded.hex()))


def fingerprint(address: Address, operation: str, args: bytes) -> str:
    """The hash by which a second use of a key is recognised as the same or as another message."""
    digest = blake2b(_framed(address.type, address.id, operation), digest_size=16)
    digest.update(args)
    return digest.hexdigest()


def _framed(*parts: str) -> bytes:
    # Length prefixes keep ("ab", "c") and ("a", "bc") apart.
    encoded = [part.encode(errors="surrogatepass") for part in parts]
    return b"".join(b"%d:%b" % (len(part), part) for part in encoded)
