"""How many shards move between the others when a runner joins or leaves. Needs no server."""

from __future__ import annotations

import random
import statistics
from collections.abc import Collection
from datetime import UTC, datetime

from entitycelery.address import ShardId
from entitycelery.placement import Runner
from entitycelery.sharding.assignment import assigned

SIZES = (1, 2, 3, 4, 5, 8, 16)
_TRIALS = 60
_SHARDS = [ShardId("default", number) for number in range(64)]
_EPOCH = datetime.fromtimestamp(0, UTC)


def movement() -> dict[str, float]:
    """By number of runners: shards of 64 that move between those that stay, on average and at most."""
    chance = random.Random(1)
    figures: dict[str, float] = {}
    for size in SIZES:
        moved = []
        for _ in range(_TRIALS):
            stay = [_runner(chance) for _ in range(size)]
            # Joining and leaving are the same step in two directions.
            moved.append(_moved(stay, [*stay, _runner(chance)]))
        figures[f"{size} runners and one more, moved on average"] = statistics.mean(moved)
        figures[f"{size} runners and one more, moved at most"] = max(moved)
    return figures


def _moved(few: Collection[Runner], more: Collection[Runner]) -> int:
    before, after = assigned(few, _SHARDS), assigned(more, _SHARDS)
    names = {runner.instance for runner in few}
    return sum(before[shard] != after[shard] and after[shard] in names for shard in _SHARDS)


def _runner(chance: random.Random) -> Runner:
    return Runner(
        *(chance.randbytes(4).hex(), "worker", "node@host", "host", 1, ("default",), 1.0, "prefork", "0", None, 0),
        *(_EPOCH, _EPOCH, 0.0, False, False),
    )
