"""What can happen to a cluster, each chosen by a seeded generator; every fault has ended when it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.cluster.clusters import LEASE_TIMEOUT_S, Cluster
from tests.cluster.nodes import PARTS, Node, Part

Fault = Callable[[Cluster], None]
FEWEST, MOST = 2, 4


def _one(cluster: Cluster) -> Node:
    node = cluster.stage.random.choice(cluster.nodes)
    print(f"  {node.name}")
    return node


def _some_time_s(cluster: Cluster) -> float:
    """Shorter than a lease lives, or longer."""
    return cluster.stage.random.uniform(0.1, 2 * LEASE_TIMEOUT_S)


def join(cluster: Cluster) -> None:
    if len(cluster.nodes) < MOST:
        cluster.start(wired=True)


def leave(cluster: Cluster) -> None:
    if len(cluster.nodes) > FEWEST:
        cluster.stop(_one(cluster))


def kill_worker(cluster: Cluster) -> None:
    cluster.kill(_one(cluster))
    join(cluster)


def kill_parent(cluster: Cluster) -> None:
    cluster.kill(_one(cluster), "parent")
    join(cluster)


def kill_runner_process(cluster: Cluster) -> None:
    _to_part(cluster, "runner", lambda node: cluster.kill(node, "runner"))


def kill_pool_process(cluster: Cluster) -> None:
    _to_part(cluster, "child", lambda node: cluster.kill(node, "child"))


def freeze(cluster: Cluster) -> None:
    part: Part = cluster.stage.random.choice(PARTS)
    _to_part(cluster, part, lambda node: _freeze(cluster, node, part))


def _freeze(cluster: Cluster, node: Node, part: Part) -> None:
    cluster.freeze(node, part)
    cluster.stage.play(_some_time_s(cluster))
    cluster.resume(node, part)


def _to_part(cluster: Cluster, part: Part, act: Callable[[Node], object]) -> None:
    node = _one(cluster)
    # A process that was killed a moment ago has no successor yet.
    if {"runner": node.worker.runner_pids, "child": node.worker.pool_pids}.get(part, lambda: [node.worker.pid])():
        act(node)


def cut_database(cluster: Cluster) -> None:
    node = _one(cluster)
    cluster.cut_database(node)
    cluster.stage.play(_some_time_s(cluster))
    node.database.mend()


def silence_database(cluster: Cluster) -> None:
    node = _one(cluster)
    node.database.silence()
    cluster.stage.play(_some_time_s(cluster))
    # As keepalives would: what has been silent for long is given up.
    node.database.cut()
    node.database.mend()


def cut_broker(cluster: Cluster) -> None:
    node = _one(cluster)
    cluster.cut_broker(node)
    cluster.stage.play(_some_time_s(cluster))
    node.broker.mend()


def stall_lease_connection(cluster: Cluster) -> None:
    node = _one(cluster)
    node.database.stall(f"entitycelery {cluster.name} lease".encode())


FAULTS: Sequence[Fault] = (
    *(join, leave, kill_worker, kill_parent, kill_runner_process, kill_pool_process),
    *(freeze, cut_database, silence_database, cut_broker, stall_lease_connection),
)
