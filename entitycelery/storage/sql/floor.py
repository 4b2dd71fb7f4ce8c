"""From where on a look for mail reads: what lies below was handled and is never pending again.

A look reads the index of a shard's mail from its lowest `seq`. While any transaction of the database is older than the
handled mail's end, vacuum cannot remove what is dead there, and each look would read past all of it.

To read on from the last `seq` that was seen would lose mail: a transaction draws its number before it commits. So a
floor rises only to a number that no transaction can still bring: every one that held the lock of an INSERT after the
sequence stood there has ended. And what lies below a floor is looked through once a minute, so that whatever was
restored or written by hand there waits so long at most; less often where that takes long, so that it costs little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch

RAISED_EVERY_S = 1.0
SEARCHED_EVERY_S = 60.0
# Of a process's time, at most so much is spent on what lies below its floors.
_SEARCHING_SHARE = 0.02
_PREPARED = "-1/"


class Pace:
    """Who is at some floors of a process, and how often they rise. A drain waits for no other: it leaves them alone."""

    def __init__(self, *, begins_at_once: bool = False) -> None:
        self._busy = Lock()
        self._raised_at_s = -math.inf if begins_at_once else time.monotonic()

    @contextmanager
    def unless_busy(self) -> Iterator[bool]:
        """Keep other drains from the floors; whether none was at them."""
        free = self._busy.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self._busy.release()

    @contextmanager
    def once_a_second(self) -> Iterator[bool]:
        """Whether to raise the floors now; others are kept from them meanwhile. What fails is tried again next time."""
        if time.monotonic() - self._raised_at_s < RAISED_EVERY_S:
            yield False
            return
        with self.unless_busy() as free:
            yield free
            if free:
                self._raised_at_s = time.monotonic()


def searched_every_s(took_s: float, *, at_most_every_s: float) -> float:
    """How often to search below a floor, if that took so long the last time."""
    return max(at_most_every_s, took_s / _SEARCHING_SHARE)


class _Floor(NamedTuple):
    seq: int
    searched_s: float


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
        self._pace = Pace()
        self._search_took_s = 0.0
        # The sequence as it stood, and the transactions that could still bring a number up to there.
        self._drawn_before = 0
        self._senders: set[str] | None = None
        # Each floor and when was looked below it; replaced, not changed, because others read without a lock.
        self._by_shard: Mapping[ShardId, _Floor] = {}

    def of(self, shards: Sequence[ShardId]) -> list[int]:
        """The floor of each shard: its mail below is done."""
        floors = self._by_shard
        return [floors[shard].seq if shard in floors else 0 for shard in shards]

    def raise_when_due(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Raise the floors of these shards, and of those of their group that have one; at most once a second."""
        if not self._dialect.keeps_what_is_dead:
            return
        with self._pace.once_a_second() as due:
            if due:
                self._search_when_due(conn, shards)
                self._raise(conn, shards)

    def search_when_due(self, conn: Connection, shards: Sequence[ShardId]) -> bool:
        """Look for mail below the floors of these shards, if that was long ago; whether there is any."""
        with self._pace.unless_busy() as free:
            return free and self._search_when_due(conn, shards)

    def _search_when_due(self, conn: Connection, shards: Sequence[ShardId]) -> bool:
        began_s = time.monotonic()
        long_ago_s = began_s - searched_every_s(self._search_took_s, at_most_every_s=SEARCHED_EVERY_S)
        group = shards[0].group
        old = {s: floor for s, floor in self._by_shard.items() if s.group == group and floor.searched_s <= long_ago_s}
        if not old:
            return False
        first = self._first_pending(conn, group, dict.fromkeys(old, 0))
        self._search_took_s = time.monotonic() - began_s
        searched = {s: _Floor(min(floor.seq, first.get(s, floor.seq)), began_s) for s, floor in old.items()}
        self._by_shard = {**self._by_shard, **searched}
        return any(searched[shard].seq < old[shard].seq for shard in old)

    def _raise(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        settled = self._settled(conn)
        if settled is None:
            return
        group, now_s = shards[0].group, time.monotonic()
        known = {shard: floor for shard, floor in self._by_shard.items() if shard.group == group}
        before = {**{shard: _Floor(0, now_s) for shard in shards}, **known}
        first = self._first_pending(conn, group, {shard: floor.seq for shard, floor in before.items()})
        to = {
            shard: _Floor(min(settled + 1, first.get(shard, settled + 1)), floor.searched_s)
            for shard, floor in before.items()
        }
        self._by_shard = {**self._by_shard, **to}

    def _first_pending(self, conn: Connection, group: str, floors: Mapping[ShardId, int]) -> dict[ShardId, int]:
        """The oldest pending mail of shards of one group, from these numbers on."""
        shards = sorted(floors)
        numbers = {"shards": [shard.number for shard in shards], "floors": [floors[shard] for shard in shards]}
        found = fetch(conn, self._first, {"shard_group": group, **numbers})
        return {ShardId(group, number): seq for number, seq in found}

    def _settled(self, conn: Connection) -> int | None:
        """A number such that no transaction will bring mail with it or a smaller one; None while none is known."""
        drawn = int(fetch(conn, self._drawn)[0][0])
        # In a later statement: whoever drew up to there has its lock by now, or has ended.
        senders = self._dialect.senders(conn)
        settled = self._drawn_before if self._senders is not None and all_ended(self._senders, senders) else None
        if drawn < self._drawn_before:
            # Another store under the same name.
            settled, self._by_shard = None, {}
            self._senders = None
        if settled is not None or self._senders is None:
            self._drawn_before, self._senders = drawn, senders
        return settled


def all_ended(before: Collection[str], now: Collection[str]) -> bool:
    """Whether none of the transactions of before is open; one that was prepared meanwhile has another name."""
    return not any(one in before or one.startswith(_PREPARED) for one in now)
