"""Changes the number of shards per group: first in the store, then on the broker."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from entitycelery.address import ShardId, queue_name
from entitycelery.exceptions import ConfigurationError, TransportFailed
from entitycelery.registry import Registry
from entitycelery.reshard_plan import ReshardPlan
from entitycelery.settings import Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.transports.queues import ShardQueues


class Resharder:
    """What is asked for twice is done once: the second time finishes what the first could not."""

    def __init__(self, *, store: SqlStore, settings: Settings, registry: Registry, queues: ShardQueues) -> None:
        self._store = store
        self._settings = settings
        self._registry = registry
        self._queues = queues

    def plan(self, number: int) -> ReshardPlan:
        """What would be done; nothing is."""
        _check(number)
        plan = self._store.resharding.plan(number, self._groups(), alive_s=self._settings.lease_timeout_s)
        return self._with_queues(plan)

    def reshard(self, number: int) -> ReshardPlan:
        """Do it; what was done.

        Raises:
            ConfigurationError: Runners are there, or it is no number of shards.
            TransportFailed: The store is done and the broker is not.
        """
        _check(number)
        done = self._store.resharding.carry_out(number, self._groups(), alive_s=self._settings.lease_timeout_s)
        done = self._with_queues(done)
        groups = [group.group for group in done.groups]
        try:
            self._queues.remove(done.queues, list(self._names(groups, 0, min(number, done.had))))
        except TransportFailed as exc:
            raise TransportFailed(
                f"the store has {number} shards per group now, but {len(done.queues)} queue(s) may be left on the "
                f"broker; when it is back, run again: entitycelery shards reshard {number} ({exc})"
            ) from exc
        self._store.resharding.finished(number)
        return done

    def _with_queues(self, plan: ReshardPlan) -> ReshardPlan:
        groups = [group.group for group in plan.groups]
        return msgspec.structs.replace(plan, queues=tuple(self._names(groups, plan.after, plan.had)))

    def _names(self, groups: list[str], first: int, end: int) -> Iterator[str]:
        for group in groups:
            for number in range(first, end):
                yield queue_name(self._settings.cluster, ShardId(group, number))

    def _groups(self) -> list[str]:
        constant = {kind.constant_group for kind in self._registry if kind.constant_group is not None}
        return sorted({*self._settings.shard_groups, *constant})


def _check(number: int) -> None:
    if number < 1:
        raise ConfigurationError(f"a group has at least 1 shard, got {number}")
