"""From when on a look for due mail reads, where so much lies dead below that reading past it takes long.

Delayed mail and retries are found by the moment at which they are due. While any transaction of the database is older
than those that were handled, vacuum cannot remove what is left of them, and each look would read past all of it.

Unlike the floors of mail without a delay these are no proof: a moment may be stored that has passed already, by a
caller's transaction that stays open, or for a time that somebody chose. So they are used only while a look from the
first row on takes long. Such a search is repeated all the same, so that a fiftieth of the time is spent on it, once a
second at most; and runners ring for overdue mail until it is gone. So what lies below is late by that much.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy.engine import Connection

from entitycelery.address import ShardId
from entitycelery.storage.port import EVER_EPOCH_S
from entitycelery.storage.sql import floor
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.statement import fetch

# Rows of a commit can be seen so much later than their moment, for the most part.
_BEHIND_S = 5.0
_LONG_S = 0.005
_SEARCHED_EVERY_S = 1.0


class _Group:
    """What is known of the shards of one group."""

    def __init__(self) -> None:
        self.pace = floor.Pace()
        self.searched_at_s = 0.0
        self.search_took_s = 0.0
        # Replaced, not changed, because others read it without a lock.
        self.by_shard: Mapping[ShardId, float] = {}

    def search_is_due(self) -> bool:
        every_s = floor.searched_every_s(self.search_took_s, at_most_every_s=_SEARCHED_EVERY_S)
        return time.monotonic() - self.searched_at_s >= every_s


class DueFloors:
    """The floors that one process knows; none where a look does not take long. `shards` are of one group."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._now = dialect.sql(f"SELECT {dialect.to_epoch(dialect.now)}")
        # The floor of mail without a delay is of no use here.
        self._first = dialect.sql(
            dialect.per_shard(
                lambda n, _: (
                    f"SELECT m.shard, {dialect.to_epoch('m.due_at')} FROM {{message}} AS m "
                    f"WHERE m.shard_group = :shard_group AND m.shard = {n} "
                    f"AND m.due_at >= {dialect.from_epoch(':since_epoch_s')} ORDER BY m.due_at LIMIT 1"
                )
            )
        )
        self._groups: defaultdict[str, _Group] = defaultdict(_Group)

    def since_epoch_s(self, shards: Sequence[ShardId]) -> float:
        """From when on to look for due mail of these shards."""
        floors = self._groups[shards[0].group].by_shard
        return min(floors.get(shard, EVER_EPOCH_S) for shard in shards)

    def raise_when_due(self, conn: Connection, shards: Sequence[ShardId]) -> None:
        """Raise the floors of these shards, and of those that have one, or remove them; at most once a second."""
        if not self._dialect.keeps_what_is_dead:
            return
        group = self._groups[shards[0].group]
        with group.pace.once_a_second() as due:
            if due:
                self._look(conn, group, shards, search=not group.by_shard or group.search_is_due())

    def clip(self, conn: Connection, since: Mapping[ShardId, float]) -> dict[ShardId, float]:
        """From when on to look for what has become due since then, in shards of any groups; raises floors, too."""
        for name in {shard.group for shard in since}:
            self.raise_when_due(conn, [shard for shard in since if shard.group == name])
        return {shard: max(since_s, self.since_epoch_s([shard])) for shard, since_s in since.items()}

    def search_when_due(self, conn: Connection, shards: Sequence[ShardId]) -> bool:
        """Look for mail below the floors, if that was long ago; whether there is any."""
        group = self._groups[shards[0].group]
        before = group.by_shard
        if not before or not group.search_is_due():
            return False
        with group.pace.unless_busy() as free:
            if free:
                self._look(conn, group, shards, search=True)
        return any(group.by_shard.get(shard, EVER_EPOCH_S) < since_s for shard, since_s in before.items())

    def _look(self, conn: Connection, group: _Group, shards: Sequence[ShardId], *, search: bool) -> None:
        began_s = time.monotonic()
        to_epoch_s = float(fetch(conn, self._now)[0][0]) - _BEHIND_S
        every = list({**dict.fromkeys(shards), **group.by_shard})
        numbers = [shard.number for shard in every]
        since_epoch_s = EVER_EPOCH_S if search else self.since_epoch_s(every)
        bound = {"shard_group": shards[0].group, "since_epoch_s": since_epoch_s}
        rows = fetch(conn, self._first, {**bound, "shards": numbers, "floors": [0] * len(numbers)})
        first = {int(number): float(due_epoch_s) for number, due_epoch_s in rows}
        if search:
            group.searched_at_s, group.search_took_s = began_s, time.monotonic() - began_s
        floors = {shard: min(to_epoch_s, first.get(shard.number, to_epoch_s)) for shard in every}
        group.by_shard = floors if group.search_took_s >= _LONG_S else {}
