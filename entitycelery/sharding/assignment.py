"""Who should host what: weighted rendezvous hashing with exact quotas, a pure function of who is there.

Plain rendezvous hashing gives each shard to the runner with the best score for it; with 64 shards the shares then miss
their weights by a third. Here each runner has a quota, its weight's share of the shards by largest remainder, and
shards and runners are matched as in Gale and Shapley's stable marriages (1962): each shard asks the runners in the
order of its scores, and a runner that is full keeps the shards that score best with it. The matching does not depend on
the order of asking. When a runner comes or goes, what moves between the others is what the change of their quotas
forces, and the few shards that make room for those.

Scores are Highest Random Weight (Thaler and Ravishankar, 1998) of a wire format: all releases must agree.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b

from entitycelery.address import ShardId
from entitycelery.placement import Runner


def assigned(runners: Collection[Runner], shards: Iterable[ShardId]) -> dict[ShardId, str]:
    """The instance of the runner that should host each shard; a shard whose group nobody serves is left out.

    Runners that are leaving get nothing, and starved ones get nothing where others serve the group too. A shard that
    some refuse goes to the best of the others, quota or not: their code may know what it has.
    """
    by_group: dict[str, list[ShardId]] = {}
    for shard in shards:
        by_group.setdefault(shard.group, []).append(shard)
    found: dict[ShardId, str] = {}
    for group, of_group in by_group.items():
        serving = [runner for runner in runners if group in runner.groups and not runner.leaving]
        fed = [runner for runner in serving if not runner.starved] or serving
        found.update(_matched({runner.instance: runner.weight for runner in fed}, sorted(of_group)))
        for shard in {shard for runner in fed for shard in runner.refused}.intersection(of_group):
            willing = [runner for runner in fed if shard not in runner.refused]
            if willing:
                found[shard] = max((score(one.instance, one.weight, shard), one.instance) for one in willing)[1]
    return found


def quotas(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """How many of `count` shards each is to have: its weight's share, by largest remainder."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    quota = {name: math.floor(share) for name, share in exact.items()}
    # The same for all who compute it: equal remainders go by name.
    by_remainder = sorted(exact, key=lambda name: (quota[name] - exact[name], name))
    for name in by_remainder[: count - sum(quota.values())]:
        quota[name] += 1
    return quota


def score(instance: str, weight: float, shard: ShardId) -> float:
    """How well a runner and a shard fit: larger is better; a wire format."""
    digest = blake2b(f"{instance}|{shard}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -weight / math.log(uniform)


def _matched(weights: Mapping[str, float], shards: Sequence[ShardId]) -> dict[ShardId, str]:
    if not weights:
        return {}
    quota = quotas(weights, len(shards))
    scores = {(name, shard): score(name, weight, shard) for name, weight in weights.items() for shard in shards}
    wishes = {
        shard: iter(sorted(weights, key=lambda name, shard=shard: (-scores[name, shard], name)))  # type: ignore[misc]
        for shard in shards
    }
    kept: dict[str, list[tuple[float, ShardId]]] = {name: [] for name in weights}
    asking = list(shards)
    while asking:
        shard = asking.pop()
        name = next(wishes[shard])
        heapq.heappush(kept[name], (scores[name, shard], shard))
        if len(kept[name]) > quota[name]:
            asking.append(heapq.heappop(kept[name])[1])
    return {shard: name for name, mine in kept.items() for _, shard in mine}
