"""Which runner holds which shard, put together from one look at the store. Decides, and reads nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from entitycelery.address import ShardId
from entitycelery.clock import utc_from_epoch
from entitycelery.placement import Lease, Placement, Runner, ShardLoad, ShardStatus
from entitycelery.singleton import Singleton, StoredSingleton
from entitycelery.stored_schedule import StoredSchedule


def holder_of(placement: Placement, shard: ShardId) -> Runner | None:
    """The registered runner that holds a shard."""
    lease = next((lease for lease in placement.leases if lease.shard == shard), None)
    return None if lease is None or lease.holder is None else placement.runner(lease.holder)


def statuses(
    placement: Placement, loads: Sequence[ShardLoad], groups: Collection[str], shards_per_group: int
) -> list[ShardStatus]:
    """All shards of these groups, and of those that have leases or messages, in order."""
    leases = {lease.shard: lease for lease in placement.leases}
    waiting = {load.shard: load for load in loads}
    known = {*groups, *(shard.group for shard in (*leases, *waiting))}
    every = {ShardId(group, number) for group in known for number in range(shards_per_group)}
    runners = {runner.instance: runner for runner in placement.runners}
    return [
        _status(shard, leases.get(shard), waiting.get(shard), runners) for shard in sorted({*every, *leases, *waiting})
    ]


def singleton_status(stored: StoredSingleton, placement: Placement) -> Singleton:
    """A singleton with its runners; one whose session is known to have ended holds nothing."""
    living = {runner.worker: runner for runner in placement.runners if runner.locked is not False}
    holder = living.get(stored.holder or "")
    age_s = stored.heartbeat_age_s
    is_young = age_s is not None and age_s < 2 * stored.heartbeat_interval_s
    return Singleton(
        kind="loop",
        name=stored.name,
        shard_group=stored.shard_group,
        holder=holder,
        since=stored.since if holder is not None else None,
        fence=stored.epoch,
        pid=stored.pid if holder is not None else None,
        started_at=stored.started_at,
        heartbeat_at=stored.heartbeat_at,
        heartbeat_age_s=age_s,
        heartbeat_interval_s=stored.heartbeat_interval_s,
        healthy=holder is not None and stored.pid is not None and is_young,
        restarts=stored.restarts,
        last_failure=stored.last_failure,
        last_failure_at=stored.last_failure_at,
        wanted=living.get(stored.wanted or ""),
    )


def ticking_status(
    name: str,
    stored: StoredSchedule | None,
    every_s: float,
    now_epoch_s: float,
    placement: Placement,
    shard: ShardId,
) -> Singleton:
    """An entity that ticks, with its runner: its heartbeat is the last tick that fired."""
    lease = next((lease for lease in placement.leases if lease.shard == shard), None)
    holder = holder_of(placement, shard)
    fired = None if stored is None else stored.last_fired_at_epoch_s
    age_s = None if fired is None else max(0.0, now_epoch_s - fired)
    return Singleton(
        kind="tick",
        name=name,
        shard_group=shard.group,
        holder=holder,
        since=lease.since if lease is not None and holder is not None else None,
        fence=lease.epoch if lease is not None else 0,
        pid=None,
        started_at=None,
        heartbeat_at=None if fired is None else utc_from_epoch(fired),
        heartbeat_age_s=age_s,
        heartbeat_interval_s=every_s,
        healthy=holder is not None and age_s is not None and age_s < 2 * every_s,
        restarts=0,
        last_failure=None if stored is None else stored.failure,
        last_failure_at=None,
        wanted=None,
    )


def _status(shard: ShardId, lease: Lease | None, load: ShardLoad | None, runners: dict[str, Runner]) -> ShardStatus:
    holder = runners.get(lease.holder or "") if lease is not None else None
    return ShardStatus(
        shard=shard,
        holder=holder,
        since=lease.since if lease is not None and holder is not None else None,
        epoch=lease.epoch if lease is not None else 0,
        pending=load.pending if load is not None else 0,
        oldest_s=load.oldest_s if load is not None else None,
    )
