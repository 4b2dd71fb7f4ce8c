"""From where on a look for mail reads: what lies below was handled and is never pending again.

A look reads the index of a shard's mail from its lowest `seq`. While any transaction of the database is older than the
handled mail's end, vacuum cannot remove what is dead there, and each look would read past all of it.

To read on from the last `seq` that was seen would lose mail: a transaction draws its number before it commits. So a
floor rises only to a number that no transaction can still bring: every one that held the lock of an INSERT after the
sequence stood there has ended. And a floor is forgotten after a minute, so that whatever was restored or written by
hand below it waits so long at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch

RAISED_EVERY_S = 1.0
FORGOTTEN_AFTER_S = 60.0
_PREPARED = "-1/"


class _Floor(NamedTuple):
    seq: int
    since_s: float


class Floors:
    """The floors that one process knows; always 0 where the dialect needs none."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # A sequence that no one has drawn from shows its first number as the last.
        self._drawn = dialect.sql("SELECT last_value - 1 + CAST(is_called AS int) FROM {message_seq}")
        self._first = dialect.sql(
            dialect.per_shard(
                lambda n, floor: (
                    f"SELECT m.shard, m.seq FROM {{message}} AS m WHERE m.shard_group = :shard_group AND m.shard = {n} "
                    f"AND m.due_at IS NULL AND m.seq >= {floor} ORDER BY m.seq LIMIT 1"
                )
            )
        )
        self._raising = threading.Lock()
        self._raised_at_s = time.monotonic()
        # The sequence as it stood, and the transactions that could still bring a number up to there.
        self._drawn_before = 0
        self._senders: set[str] | None = None
        # Each floor and since when there is one; replaced, not changed, because others read without a lock.
        self._by_shard: Mapping[ShardId, _Floor] = {}

    def of(self, shards: Sequence[ShardId]) -> list[int]:
        """The floor of each shard: its mail below is done."""
        floors = self._standing()
        return [floors[shard].seq if shard in floors else 0 for shard in shards]

    def _standing(self) -> dict[ShardId, _Floor]:
        oldest_s = time.monotonic() - FORGOTTEN_AFTER_S
        return {shard: floor for shard, floor in self._by_shard.items() if floor.since_s > oldest_s}

    def raise_when_due(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Raise the floors of these shards, and of those of their group that have one; at most once a second."""
        if not self._dialect.keeps_what_is_dead or time.monotonic() - self._raised_at_s < RAISED_EVERY_S:
            return
        if self._raising.acquire(blocking=False):
            try:
                self._raise(conn, shards)
                self._raised_at_s = time.monotonic()
            finally:
                self._raising.release()

    def _raise(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        settled = self._settled(conn)
        if settled == 0:
            return
        group = shards[0].group
        raised = sorted({shard for shard in self._by_shard if shard.group == group}.union(shards))
        now_s, standing = time.monotonic(), self._standing()
        before = [standing.get(shard, _Floor(0, now_s)) for shard in raised]
        found = fetch(
            conn,
            self._first,
            {
                "shard_group": group,
                "shards": [shard.number for shard in raised],
                "floors": [floor.seq for floor in before],
            },
        )
        first = {ShardId(group, number): seq for number, seq in found}
        to = {
            shard: _Floor(min(settled + 1, first.get(shard, settled + 1)), floor.since_s)
            for shard, floor in zip(raised, before, strict=True)
        }
        self._by_shard = {**self._by_shard, **to}

    def _settled(self, conn: Connection) -> int:
        """A number such that no transaction will bring mail with it or a smaller one; 0 while none is known."""
        drawn = int(fetch(conn, self._drawn)[0][0])
        # In a later statement: whoever drew up to there has its lock by now, or has ended.
        senders = self._dialect.senders(conn)
        settled = self._drawn_before if self._senders is not None and all_ended(self._senders, senders) else 0
        if drawn < self._drawn_before:
            # Another store under the same name.
            settled, self._by_shard = 0, {}
            self._senders = None
        if settled or self._senders is None:
            self._drawn_before, self._senders = drawn, senders
        return settled


def all_ended(before: Collection[str], now: Collection[str]) -> bool:
    """Whether none of the transactions of before is open; one that was prepared meanwhile has another name."""
    return not any(one in before or one.startswith(_PREPARED) for one in now)
