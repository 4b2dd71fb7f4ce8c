"""Wake-ups: hints that a shard has work, left out when a drain is known to look again.

A lost or doubled wake-up costs time only: the sweep bounds the wait.
So trouble with the broker is logged, never raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable, TransportFailed
from entitycelery.telemetry import happened
from entitycelery.transports.later import LaterRinger

log = logging.getLogger("entitycelery.wakeup")

_REST_AFTER_FAILURE_S = 1.0
# A broker that hangs costs senders a sixth of their time at most.
_REST_PER_WAIT = 5.0
# Whoever sends so often is not waiting for an answer between two sends.
_STREAM_INTERVAL_S = 0.004
# Nor is one who sends to so many shards at once.
_FEW = 2


class Ringer(Protocol):
    """Carries wake-ups."""

    def ring(self, shards: Sequence[ShardId]) -> None:
        """Send one wake-up to each shard.

        Raises:
            TransportFailed: The broker did not take them.
        """


class Bell:
    """Rings for shards, at most as often as needed.

    A shard that was rung within the last second is asked for attention first: refused means that a drain loops over
    it and will look once more after letting go, so nobody need ring (see docs/explanation/protocol.md).
    """

    def __init__(self, ringer: Ringer, attended: Callable[[Sequence[ShardId]], set[ShardId]]) -> None:
        self._ringer = ringer
        self._attended = attended
        self._rang_at: dict[ShardId, float] = {}
        self._resting_until = 0.0
        self._later = LaterRinger(self._carry)
        self._streamed_at = 0.0

    def should_ask(self, shard: ShardId) -> bool:
        """Whether a sender should ask for the shard's attention before it rings."""
        return time.monotonic() - self._rang_at.get(shard, -10.0) < 1.0

    def mail_stored(self, shards: Iterable[ShardId], *, streaming: bool = False) -> None:
        """Mail for these shards is committed: ring where nobody is known to look."""
        wanted = sorted(set(shards))
        recent = [shard for shard in wanted if self.should_ask(shard)]
        attended: set[ShardId] = set()
        if recent:
            try:
                attended = self._attended(recent)
            except StoreUnavailable:
                log.warning("could not ask for attention, ringing", exc_info=True)
        self.asked(wanted, attended, streaming=streaming)

    def asked(self, shards: Iterable[ShardId], attended: Collection[ShardId], *, streaming: bool = False) -> None:
        """Mail for these shards was committed before some of them were found attended: ring for the others."""
        # Asked for is as recent as rung: while a drain is known to look, asking goes on and nobody rings.
        self._mark(attended, time.monotonic())
        self.ring([shard for shard in shards if shard not in attended], streaming=streaming)

    def ring(self, shards: Sequence[ShardId], *, streaming: bool = False) -> None:
        """Ring for these shards in any case.

        Args:
            streaming: The caller may go on before the broker has it, if it rings as often, or for as many shards, as
                a stream of sends does.
        """
        now = time.monotonic()
        if not shards or now < self._resting_until:
            return
        self._mark(shards, now)
        since, self._streamed_at = self._streamed_at, now
        if streaming and (len(shards) > _FEW or now - since < _STREAM_INTERVAL_S):
            self._later.put(shards)
        else:
            self._carry(shards)

    def flush(self) -> None:
        """Wait, in bounded time, for wake-ups that are on their way to the broker."""
        self._later.flush()

    def _carry(self, shards: Sequence[ShardId]) -> None:
        happened("entity.wakeup", shards=[str(shard) for shard in shards])
        began = time.monotonic()
        try:
            self._ringer.ring(shards)
        except TransportFailed as exc:
            # No retry storm while the broker is away; the messages are stored and the sweep rings later.
            ended = time.monotonic()
            self._resting_until = ended + max(_REST_AFTER_FAILURE_S, _REST_PER_WAIT * (ended - began))
            log.warning("wake-up not sent", extra={"shards": [str(s) for s in shards], "error": str(exc)})

    def _mark(self, shards: Iterable[ShardId], now_s: float) -> None:
        # One step of the interpreter: no lock that a fork could leave behind locked.
        self._rang_at.update(dict.fromkeys(shards, now_s))
