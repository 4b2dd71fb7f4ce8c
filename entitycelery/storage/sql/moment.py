"""The table `message` by its due moments: what is due, what will be next, and telling runners of what is due soon.

Looking relies on the index message_due, two probes for each shard; telling on the primary key. How far off the other
moments are, and how many there are, does not matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.address import ShardId
from entitycelery.message import NewMessage
from entitycelery.storage.port import DueMoments
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.mailbox import RUNNABLE
from entitycelery.storage.sql.statement import Statement, fetch, first_line

log = logging.getLogger("entitycelery.store")

# A moment counts from when its row is written, the horizon from when others can see it. A caller's transaction that is
# open for longer has its mail found by the next look, as has a sender whose clock is wrong by more than that.
_LONGEST_COMMIT_S = 5.0
_LONGEST_CALLER_S = 60.0
_CLOCKS_DIFFER_BY_S = 86_400.0


class Moments:
    """Statements about due moments. Runners see those within `horizon_s` at every look; so long they are told of."""

    def __init__(self, dialect: Dialect, horizon_s: float) -> None:
        self._dialect = dialect
        self._horizon_s = horizon_s
        of_shard = "FROM {message} AS m WHERE m.shard_group = r.g AND m.shard = r.n"
        due_at = dialect.to_epoch("m.due_at")
        # One clock for both questions: between two, a moment could be neither past nor to come.
        self._look = dialect.sql(
            f"WITH c AS MATERIALIZED (SELECT {dialect.now} AS now, {dialect.after(':horizon_s')} AS horizon) "
            f"SELECT r.g, r.n, {dialect.to_epoch('c.now')}, "
            f"(SELECT {due_at} {of_shard} AND m.due_at >= {dialect.from_epoch('r.since')} AND m.due_at <= c.now "
            f"AND {RUNNABLE} ORDER BY m.due_at DESC LIMIT 1), "
            f"(SELECT {due_at} {of_shard} AND m.due_at > c.now AND m.due_at <= c.horizon ORDER BY m.due_at LIMIT 1) "
            "FROM {rows} CROSS JOIN c",
            rows=dialect.rowset("rows", g="text", n="int", since="float"),
        )
        self._tell = dialect.sql(dialect.announce_due)

    def look(self, conn: Connection, since: Mapping[ShardId, float]) -> DueMoments:
        """What has become due in these shards since then, and what will be next; at least one shard."""
        rows = [{"g": shard.group, "n": shard.number, "since": since_s} for shard, since_s in since.items()]
        found = fetch(conn, self._look, {"rows": self._dialect.rows(rows), "horizon_s": self._horizon_s})
        return DueMoments(
            now_epoch_s=found[0][2],
            due={ShardId(group, number): due for group, number, _, due, _ in found if due is not None},
            next_epoch_s=min((row[4] for row in found if row[4] is not None), default=None),
        )

    def soon(self, messages: Iterable[NewMessage]) -> list[str]:
        """The ids of those messages that may be due within the horizon once they are committed."""
        return [m.id for m in messages if m.is_delayed and self.is_soon(m.delay_s, m.deliver_at_epoch_s)]

    def is_soon(self, delay_s: float | None, deliver_at_epoch_s: float | None) -> bool:
        """Whether a moment may be within the horizon; for the others nothing need be asked of the database."""
        if not self._tell:
            return False
        if deliver_at_epoch_s is not None:
            return deliver_at_epoch_s - time.time() < self._horizon_s + _CLOCKS_DIFFER_BY_S
        return delay_s is not None and delay_s < self._horizon_s + _LONGEST_COMMIT_S

    def telling(self, ids: Sequence[str], open_for_s: float = 0.0) -> tuple[Statement, dict[str, Any]]:
        """The statement, with its parameters, that tells runners of these messages, if the first is due within the
        horizon, counted from the end of a transaction that stays open for so long."""
        within_s = self._horizon_s + open_for_s
        return self._tell, {"due_channel": self._dialect.due_channel, "due_ids": list(ids), "within_s": within_s}

    def tell(self, conn: Connection, ids: Sequence[str]) -> None:
        """Tell runners of messages that were committed. In a statement of its own: commits that tell wait for each
        other."""
        if not (ids and self._tell):
            return
        try:
            fetch(conn, *self.telling(ids))
        except DBAPIError as exc:
            # They are stored: the next look finds them.
            log.warning("no runner was told of mail that is due soon: %s", first_line(exc))

    def tell_at_commit(self, conn: Connection, ids: Sequence[str]) -> None:
        """Have runners told of messages when the caller's transaction commits, if it does."""
        if ids and self._tell:
            fetch(conn, *self.telling(ids, _LONGEST_CALLER_S))
