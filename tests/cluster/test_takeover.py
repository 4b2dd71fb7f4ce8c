"""A worker, or a part of it, is killed: its shards are served elsewhere at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest

from tests.cluster.clusters import Cluster, MakeCluster
from tests.cluster.nodes import Node
from tests.waiting import eventually

# From the kill of a whole worker to the first commit of an entity of each of its shards, the slowest of all kills.
WITHIN_S = {"amqp": 2.0, "redis": 3.0, "folder": 5.0, "gevent": 5.0}
KILLS = 5
# Settings as they come: no time-out may have a part in it.
AS_THEY_COME = {"entity_refresh_interval_s": 1.0, "entity_lease_timeout_s": 10.0}

Record = Callable[[str, object], None]


def setting(kind: str) -> tuple[str, str]:
    """The broker and the pool."""
    return ("redis", "gevent") if kind == "gevent" else (kind, "prefork")


def kill_one_by_one(cluster: Cluster, pool: str) -> list[float]:
    """Kill all workers but the last, one after another; how long each takeover took."""
    cluster.start(KILLS + 1, pool=pool, slots=1)
    took_s = []
    while len(cluster.nodes) > 1:
        cluster.wait_until_stable()
        cluster.ask_each()
        victim = cluster.nodes[0]
        shards = sorted(cluster.shards_of(victim))
        began_s = time.time()
        cluster.kill(victim)
        took_s.append(time.time() - began_s + cluster.ask_each(shards))
    return took_s


def report(record: Record, kind: str, took_s: list[float]) -> None:
    figures = f"{len(took_s)} kills: p50 {statistics.median(took_s):.2f} s, max {max(took_s):.2f} s"
    print(f"takeover, {kind}: {figures}")
    record(f"takeover {kind}", figures)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", WITHIN_S)
def test_shards_of_a_killed_worker_are_served_elsewhere_in_time(
    new_cluster: MakeCluster, kind: str, record_property: Record
) -> None:
    broker, pool = setting(kind)
    cluster = new_cluster(broker, entity_shards_per_group=16, **AS_THEY_COME)

    took_s = kill_one_by_one(cluster, pool)

    report(record_property, kind, took_s)
    assert max(took_s) <= WITHIN_S[kind]
    cluster.assert_invariants()


@pytest.mark.chaos_long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", WITHIN_S)
def test_shards_of_each_of_twenty_killed_workers_are_served_elsewhere_in_time(
    new_cluster: MakeCluster, kind: str, record_property: Record
) -> None:
    broker, pool = setting(kind)

    took_s = []
    for _ in range(4):
        cluster = new_cluster(broker, entity_shards_per_group=64, **AS_THEY_COME)
        took_s += kill_one_by_one(cluster, pool)
        cluster.close()

    report(record_property, kind, took_s)
    assert len(took_s) == 20
    assert max(took_s) <= WITHIN_S[kind]


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["amqp", pytest.param("folder", marks=pytest.mark.chaos_long)])
def test_killing_the_parent_alone_frees_its_shards_though_its_pool_lives_on(
    new_cluster: MakeCluster, broker: str
) -> None:
    cluster = new_cluster(broker, **AS_THEY_COME)
    victim, other = cluster.start(2)
    cluster.wait_until_stable()
    shards = sorted(cluster.shards_of(victim))
    pool = victim.worker.pool_pids()

    cluster.kill(victim, "parent")
    took_s = cluster.ask_each(shards)

    # Were the lease's socket open in a process of the pool, its locks would be held for as long as that lives.
    assert took_s < WITHIN_S["folder"]
    assert pool
    cluster.wait_until_stable(other)
    cluster.assert_invariants()


@pytest.mark.chaos
def test_killing_the_runner_process_alone_leaves_a_worker_that_gets_shards_again(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("redis", **AS_THEY_COME)
    node, _ = cluster.start(2)
    cluster.wait_until_stable()
    [before] = node.worker.runner_pids()
    instance = instance_of(cluster, node)

    cluster.kill(node, "runner")
    took_s = cluster.ask_each()

    assert took_s < WITHIN_S["redis"]
    cluster.wait_until_stable()
    assert node.worker.runner_pids() != [before]
    assert instance_of(cluster, node) != instance
    cluster.ask_each()
    assert node.is_running
    assert node.worker.log().count(" ready.") == 1
    cluster.assert_invariants()


def instance_of(cluster: Cluster, node: Node) -> str:
    runner = eventually(lambda: cluster.runner_of(node))
    assert runner is not None
    return runner.instance
