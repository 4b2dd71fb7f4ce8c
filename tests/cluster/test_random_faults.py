"""Whatever happens to a cluster, in whatever order: the history holds, and the service goes on."""

from __future__ import annotations

import pytest

from tests.cluster.clusters import MakeCluster
from tests.cluster.faults import FAULTS, MOST

ON = {
    "advisory": ("redis", {}),
    "rows": ("redis", {"entity_lock_mode": "rows"}),
    "rabbitmq": ("amqp", {}),
}


@pytest.mark.chaos_long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("on", ON)
def test_history_holds_under_a_random_sequence_of_faults(new_cluster: MakeCluster, on: str) -> None:
    broker, conf = ON[on]
    cluster = new_cluster(broker, **conf)
    cluster.start(3, wired=True)
    cluster.wait_until_stable()
    cluster.load()
    chosen = [*FAULTS, *cluster.stage.random.choices(FAULTS, k=len(FAULTS))]
    cluster.stage.random.shuffle(chosen)

    for fault in chosen:
        print(f"{fault.__name__}, of {len(cluster.nodes)} workers")
        fault(cluster)
        cluster.stage.play(cluster.stage.random.uniform(0.0, 1.0))

    while len(cluster.nodes) < MOST - 1:
        cluster.start(wired=True)
    cluster.wait_until_stable(within_s=60)
    cluster.ask_each()
    cluster.verdict()
