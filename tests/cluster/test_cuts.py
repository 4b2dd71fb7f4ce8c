"""One worker's way to a server is cut, or falls silent: it consumes nothing, others do, and it comes back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.clusters import LEASE_TIMEOUT_S, REFRESH_S, SHARDS, Cluster, MakeCluster
from tests.cluster.nodes import Node
from tests.waiting import eventually

# What is told to a worker runs out before a lease could; then it looks four times a second.
SILENT_AFTER_S = LEASE_TIMEOUT_S
SERVED_WITHIN_S = LEASE_TIMEOUT_S + 3.0

Cut = Callable[[Cluster, Node], None]


def cut_database(cluster: Cluster, node: Node) -> None:
    """Connections break, new ones too."""
    cluster.cut_database(node)


def silence_database(_cluster: Cluster, node: Node) -> None:
    """Every connection hangs, and so does each new one: nothing is answered any more."""
    node.database.silence()


def stall_lease_connection(cluster: Cluster, node: Node) -> None:
    """The lease connection hangs, all others work, new ones too."""
    cluster.stall_lease_connection(node)


@pytest.mark.chaos
@pytest.mark.parametrize(
    "cut",
    [silence_database, stall_lease_connection, pytest.param(cut_database, marks=pytest.mark.chaos_long)],
    ids=lambda cut: cut.__name__,
)
def test_a_worker_that_cannot_confirm_its_leases_consumes_nothing_until_it_can(
    new_cluster: MakeCluster, cut: Cut
) -> None:
    cluster = new_cluster("redis")
    [node] = cluster.start(wired=True)
    [other] = cluster.start()
    cluster.wait_until_stable()
    cluster.load()

    began_s = time.time()
    cut(cluster, node)
    served_s = time.time() - began_s + cluster.ask_each()

    if cut is not stall_lease_connection:
        cluster.wait_until_stable(other)
        cluster.stage.play(max(0.0, SILENT_AFTER_S - (time.time() - began_s)))
        drained = cluster.drains_of(node, since_s=began_s + SILENT_AFTER_S)
        node.database.mend()
        assert drained == 0
    print(f"{cut.__name__}: everything was served {served_s:.2f} s after it")
    assert served_s < SERVED_WITHIN_S
    cluster.wait_until_stable()
    cluster.ask_each()
    cluster.verdict()
    # The consumer lived through all of it.
    assert node.worker.log().count(" ready.") == 1


@pytest.mark.chaos
def test_a_lease_connection_that_hangs_holds_nothing_up_and_is_replaced(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp")
    [node] = cluster.start(wired=True)
    cluster.wait_until_stable()
    before = cluster.runner_of(node)
    assert before is not None

    cluster.stall_lease_connection(node)
    lost_s = seconds_until(lambda: "lease lost" in node.worker.log())

    # The deadline is half the lease's time: well before anybody else could have it.
    assert lost_s < LEASE_TIMEOUT_S / 2 + REFRESH_S + 1.0
    assert "has not answered within" in node.worker.log()
    # Nobody probes the connection that hangs, and the new one ends what the old one holds.
    eventually(lambda: (now := cluster.runner_of(node)) is not None and now.instance != before.instance)
    cluster.wait_until_stable()
    assert cluster.ask_each() < 5
    cluster.assert_invariants()


@pytest.mark.chaos_long
def test_duties_go_on_while_the_lease_connection_hangs(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp")
    [node] = cluster.start(wired=True)
    [runner] = node.worker.runner_pids()
    cluster.wait_until_stable()

    for times in range(1, 4):
        cluster.stall_lease_connection(node)
        eventually(lambda lost=times * SHARDS: node.worker.log().count("lease lost") == lost)
        eventually(lambda registered=times + 1: node.worker.log().count("runner registered") == registered)
        cluster.wait_until_stable()

    assert node.worker.runner_pids() == [runner]
    assert cluster.ask_each() < 5


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_shards_of_a_worker_without_its_broker_are_served_by_others_until_it_is_back(
    new_cluster: MakeCluster, broker: str
) -> None:
    cluster = new_cluster(broker, entity_lease_timeout_s=10.0)
    [node] = cluster.start(wired=True)
    [other] = cluster.start()
    cluster.wait_until_stable()

    cluster.cut_broker(node)
    eventually(lambda: cluster.shards_of(node) == set())
    # No time-out had a part in it.
    assert cluster.ask_each() < 2
    node.broker.mend()

    cluster.wait_until_stable()
    assert cluster.ask_each() < 2
    assert other.is_running


def seconds_until(check: Callable[[], object]) -> float:
    began_s = time.monotonic()
    eventually(check)
    return time.monotonic() - began_s
