"""The number of shards per group: as the store keeps it, and as this process hashes with it.

A reshard changes the store's number while senders live. Every insert says with which number it hashed and stores
nothing where the store has another one; then it looks here, and hashes anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy.engine import Connection

from entitycelery.address import Address, ShardId, shard_of
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import NewMessage
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch


class Hashing:
    """What one process believes; shared by all its threads. `number` only ever is one that the store has had."""

    def __init__(self, dialect: Dialect, shards_per_group: int) -> None:
        self._configured = self.number = shards_per_group
        self._has_agreed = False
        self._has_changed = False
        self._kept = dialect.sql(dialect.shards_kept)

    def agree(self) -> None:
        """The store was seen to have the configured number: if it has another one later, that is a reshard."""
        self._has_agreed = True

    def follow(self, conn: Connection) -> None:
        """Hash with the number that the store has now.

        Raises:
            ConfigurationError: It has never had the configured one, as far as this process knows.
        """
        number = self._number(conn)
        if number == self.number:
            self._has_agreed = True
        elif not number or not self._has_agreed:
            raise self._disagreement(number)
        else:
            # First this: whoever reads the new number must not trust what was hashed with the old one.
            self._has_changed = True
            self.number = number

    def check(self, conn: Connection) -> None:
        """Refuse to go on with another number than the configured one: who hosts shards cannot hash anew.

        Raises:
            ConfigurationError: The store has another one, whatever it had before.
        """
        if (number := self._number(conn)) != self._configured:
            raise self._disagreement(number)

    def _number(self, conn: Connection) -> int:
        kept = fetch(conn, self._kept)
        # Somebody may have written anything there.
        text = str(kept[0][0]) if kept else ""
        return int(text) if text.isascii() and text.isdigit() else 0

    def _disagreement(self, number: int) -> ConfigurationError:
        return ConfigurationError(
            f"the store has {number or 'no'} shards per group, entity_shards_per_group says {self._configured}"
        )

    def hashed(self, messages: Sequence[NewMessage], number: int) -> Sequence[NewMessage]:
        """The messages in their shards of so many; as they are, for as long as there has been one number only."""
        if not self._has_changed:
            return messages
        return [msgspec.structs.replace(m, shard=self.shard(m.address, m.shard, number)) for m in messages]

    def shard(self, address: Address, shard: ShardId, number: int | None = None) -> ShardId:
        """The shard in which an entity is that somebody took to be in `shard`: of the same group."""
        return shard_of(shard.group, address.id, number or self.number) if self._has_changed else shard
