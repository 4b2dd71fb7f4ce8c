"""Workers come and go under load: service never stops, no ask waits long, each message is handled once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.celery.workers import Worker
from tests.chaos.rates import Rates
from tests.cluster.clusters import Cluster, MakeCluster
from tests.cluster.test_takeover import AS_THEY_COME
from tests.history import Operation

# Starting a worker takes both cores of a small machine for a second, which is silence too. A shard that changes hands
# by a time-out would be silent for longer than any of these.
LONGEST_SILENCE_S = 2.5
P99_S = 1.0


def waits_s(history: Sequence[Operation], begin_s: float, end_s: float) -> list[float]:
    """How long the asks of this time took, the longest last; unanswered ones have waited until now."""
    asks = [op for op in history if op.kind == "ask" and begin_s <= op.invoked_s <= end_s and op.outcome != "failed"]
    return sorted(min(op.returned_s, time.monotonic()) - op.invoked_s for op in asks)


def assert_never_interrupted(history: Sequence[Operation], began_s: float, ended_s: float) -> None:
    asks_s = waits_s(history, began_s, ended_s)
    silence_s = Rates(history).longest_silence_s(began_s, ended_s)
    p99_s = asks_s[int(len(asks_s) * 0.99)]
    print(
        f"{len(asks_s)} asks in {ended_s - began_s:.1f} s: p50 {asks_s[len(asks_s) // 2] * 1000:.0f} ms, "
        f"p99 {p99_s * 1000:.0f} ms, max {asks_s[-1] * 1000:.0f} ms, longest silence {silence_s * 1000:.0f} ms"
    )
    assert silence_s < LONGEST_SILENCE_S
    assert p99_s < P99_S


def join_and_leave(cluster: Cluster) -> list[Worker]:
    """One worker joins, then another, then the first leaves, then the second."""
    cluster.start()
    cluster.wait_until_stable()
    cluster.start()
    cluster.wait_until_stable()
    joined = [node.worker for node in cluster.nodes[1:]]
    for node in cluster.nodes[1:]:
        cluster.stop(node)
        cluster.wait_until_stable()
    return joined


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["amqp", "redis", "folder"])
def test_service_goes_on_while_workers_join_and_leave(new_cluster: MakeCluster, broker: str) -> None:
    cluster = new_cluster(broker, entity_shards_per_group=16, **AS_THEY_COME)
    [stays] = cluster.start()
    cluster.wait_until_stable()
    cluster.load()
    began_s = time.monotonic()

    join_and_leave(cluster)

    ended_s = time.monotonic()
    cluster.stage.play(0.5)
    assert_never_interrupted(cluster.verdict(), began_s, ended_s)
    # Its queues were added and cancelled, its consumer stayed as it was.
    assert stays.worker.log().count("Connected to") == 1
    assert "Traceback" not in stays.worker.log()


@pytest.mark.chaos_long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
@pytest.mark.parametrize("on", ["amqp", "redis", "rows", "folder"])
def test_service_goes_on_while_workers_join_and_leave_again_and_again(
    new_cluster: MakeCluster, on: str, pool: str
) -> None:
    conf = {"entity_lock_mode": "rows"} if on == "rows" else {}
    cluster = new_cluster("amqp" if on == "rows" else on, **AS_THEY_COME, **conf)
    cluster.start(pool=pool)
    cluster.wait_until_stable()
    cluster.load()

    for _ in range(3):
        join_and_leave(cluster)

    cluster.verdict()


@pytest.mark.chaos
def test_shards_move_only_where_they_must_and_wait_for_no_time_out(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp", entity_shards_per_group=16, **AS_THEY_COME)
    cluster.start(2)
    cluster.wait_until_stable()
    before = cluster.holders()

    [joined] = cluster.start()
    cluster.wait_until_stable(within_s=5)
    after = cluster.holders()

    assert len(cluster.shards_of(joined)) in (5, 6)
    elsewhere = [shard for shard in before if after[shard] not in (before[shard], [joined.address])]
    assert len(elsewhere) <= 4
    assert cluster.ask_each() < 2
    cluster.assert_invariants()
