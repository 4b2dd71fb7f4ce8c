"""A drain in its slot of the pool: what the worker's dispatcher has asked for, in the process that does it."""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Sequence

from entitycelery.address import ShardId
from entitycelery.app import EntityCelery, current_entities
from entitycelery.client.hosting import holder_of
from entitycelery.exceptions import StoreUnavailable
from entitycelery.placement import WORKER_VARIABLE
from entitycelery.settings import Settings
from entitycelery.worker.link import now_s
from entitycelery.worker.logs import set_up_worker_log
from entitycelery.worker.termination import process_may_be_ended

log = logging.getLogger("entitycelery.drain")


def run_drain(group: str, numbers: Sequence[int], may_end_process: bool, asked_s: float) -> tuple[bool, list[int]]:
    """Work off the due messages of shards in this process; `asked_s` is when that was asked for.

    Whether they must be drained again, and the numbers of those with mail that this code does not know.

    Trouble with the store is logged and left to the sweep, which rings again.
    """
    shards = [ShardId(group, number) for number in numbers]
    try:
        entities = current_entities()
        _prepare_process(os.getpid(), entities.settings, is_pools_own=may_end_process)
        if _may_have_gone(entities.settings, asked_s):
            shards = _still_ours(entities, shards)
        if not shards:
            return False, []
        with process_may_be_ended():
            drained = entities.host.drain(*shards, may_end_process=may_end_process)
        return drained.more, sorted(shard.number for shard in drained.unknown)
    except StoreUnavailable as exc:
        log.warning("drain stopped, the sweep will ring again: %s", exc)
    except Exception:
        log.exception("drain failed", extra={"group": group, "shards": numbers})
    return False, []


def _may_have_gone(settings: Settings, asked_s: float) -> bool:
    # As long as this the slot was taken, or its process frozen: then the shards of such a worker are given to others,
    # who would meet one more drain from each of its slots.
    return now_s() - asked_s >= min(settings.starved_after_s, settings.lease_timeout_s)


def _still_ours(entities: EntityCelery, shards: list[ShardId]) -> list[ShardId]:
    placement = entities.store.placement()
    holders = {shard: holder_of(placement, shard) for shard in shards}
    worker = os.environ.get(WORKER_VARIABLE)
    return [shard for shard, holder in holders.items() if holder is not None and holder.worker == worker]


@functools.lru_cache(maxsize=1)
def _prepare_process(_pid: int, settings: Settings, *, is_pools_own: bool) -> None:
    # Processes that the pool spawns have handlers of their own; forked ones inherit them as they are.
    set_up_worker_log(settings)
    if is_pools_own:
        # What the app imported stays; the collector need not look through it again every few batches.
        gc.freeze()
