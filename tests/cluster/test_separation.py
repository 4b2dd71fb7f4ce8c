"""Who has nothing to do with whom: clusters in one database, and processes that only send."""

from __future__ import annotations

import pytest

from entitycelery.address import lock_space
from tests.chaos.servers import execute
from tests.cluster.clusters import Cluster, MakeCluster
from tests.waiting import eventually


def beside(new_cluster: MakeCluster, other: Cluster, broker: str) -> Cluster:
    """Another cluster in the same database and on the same broker."""
    return new_cluster(broker, entity_database_url=other.url, broker_url=other.conf["broker_url"])


@pytest.mark.chaos
def test_two_clusters_in_one_database_never_meet(new_cluster: MakeCluster) -> None:
    one = new_cluster("amqp")
    other = beside(new_cluster, one, "amqp")
    [node], [stranger, dies] = one.start(), other.start(2)
    for cluster in (one, other):
        cluster.wait_until_stable()
        cluster.ask_each()
    machine_ids = [runner.machine_id for runner in other.placement().runners]

    # One cluster's eviction and takeover are nothing to the other.
    other.freeze(dies)
    other.wait_until_stable(stranger)
    other.kill(dies)

    assert one.holders() == {shard.number: [node.address] for shard in one.shards}
    assert other.holders() == {shard.number: [stranger.address] for shard in other.shards}
    assert node.worker.log().count("runner registered") == 1
    assert "lease lost" not in node.worker.log()
    # Each counts its machine ids from the first.
    assert [runner.machine_id for runner in one.placement().runners] == [0]
    assert min(machine_ids) == 0
    assert lock_space(one.name, "lease default") != lock_space(other.name, "lease default")


@pytest.mark.chaos
def test_a_process_that_only_sends_never_registers(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp")
    [node] = cluster.start()
    [tasks] = cluster.start(1, "--without-entities")
    cluster.load()
    cluster.wait_until_stable(node)

    cluster.stage.await_answers(50)

    assert [runner.address for runner in cluster.placement().runners] == [node.address]
    assert tasks.worker.runner_pids() == []
    names = {name for (name,) in execute(cluster.url, "SELECT DISTINCT application_name FROM pg_stat_activity")}
    holding = {str(name) for name in names if f" {cluster.name} lease" in str(name)}
    assert len(holding) == 1
    cluster.verdict()


@pytest.mark.chaos
def test_a_restarted_worker_with_the_same_name_is_another_runner(new_cluster: MakeCluster) -> None:
    # Identity by host name alone would hand the dead worker's leases to the new one, and both would commit.
    # On RabbitMQ Celery itself refuses a second node of one name.
    cluster = new_cluster("redis")
    [frozen] = cluster.start()
    cluster.wait_until_stable()
    before = cluster.runner_of(frozen)
    assert before is not None
    cluster.freeze(frozen)

    [same] = cluster.start(1, "-n", frozen.address)

    def instances() -> set[str]:
        return {runner.instance for runner in cluster.placement().runners if runner.address == frozen.address}

    # Both are there until the lease of the frozen one has run out: for moments, or for seconds.
    eventually(lambda: instances() and before.instance not in instances())
    assert cluster.ask_each() < 5
    registered, removed, taken = (
        same.worker.log().index(line) for line in ("runner registered", "runner removed", "lease taken")
    )
    assert registered < removed < taken
    cluster.kill(frozen)
