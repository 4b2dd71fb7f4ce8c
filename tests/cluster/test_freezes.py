"""A worker, or a part of it, is frozen for longer than a lease lives: others serve, and nobody writes twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.clusters import LEASE_TIMEOUT_S, MakeCluster
from tests.cluster.nodes import PARTS, Part
from tests.waiting import eventually

# Kept for longer than this nobody's leases are.
GONE_AFTER_S = LEASE_TIMEOUT_S + 1.0
SERVED_WITHIN_S = LEASE_TIMEOUT_S + 3.0
ON = {
    "advisory": ("redis", "postgresql", {}),
    "rows": ("redis", "postgresql", {"entity_lock_mode": "rows"}),
    # Without an event loop all processes of a pool read one pipe, one at a time: that one, frozen, keeps the others
    # from every task. It is a pool without a free slot, whose shards go elsewhere after this, and not after a lease.
    "sqlite": ("folder", "sqlite", {"entity_starved_after_s": LEASE_TIMEOUT_S}),
}


def freeze_and_resume(new_cluster: MakeCluster, on: str, *parts: Part, under_load: bool = True) -> None:
    """Freeze a part, see everything served without it, let it go on, see it take part again; one part after another."""
    broker, store, conf = ON[on]
    cluster = new_cluster(broker, store=store, **conf)
    frozen, other = cluster.start(2)
    cluster.wait_until_stable()
    if under_load:
        cluster.load()
    for part in parts:
        print(f"freezing {part}")
        instance = runner_instance(cluster, frozen)
        began_s = time.time()
        cluster.freeze(frozen, part)

        served_s = time.time() - began_s + cluster.ask_each()
        cluster.stage.play(max(0.0, GONE_AFTER_S - (time.time() - began_s)))
        if part != "child":
            cluster.wait_until_stable(other)
            cluster.ask_each()
        cluster.resume(frozen, part)

        print(f"{part}: everything was served {served_s:.2f} s after the freeze")
        assert served_s < SERVED_WITHIN_S
        cluster.wait_until_stable()
        if part != "child":
            assert runner_instance(cluster, frozen) != instance
        cluster.ask_each()
    if under_load:
        cluster.verdict()
    cluster.assert_invariants()


def runner_instance(cluster: Any, node: Any) -> str:
    instance: str = eventually(lambda: cluster.runner_of(node)).instance
    return instance


@pytest.mark.chaos
def test_whatever_is_frozen_is_evicted_and_rejoins_and_no_second_writer_commits(new_cluster: MakeCluster) -> None:
    freeze_and_resume(new_cluster, "advisory", *PARTS)


@pytest.mark.chaos_long
@pytest.mark.parametrize("under_load", [True, False], ids=["load", "idle"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("on", ON)
def test_one_part_is_frozen_again_and_again(new_cluster: MakeCluster, on: str, part: Part, under_load: bool) -> None:
    freeze_and_resume(new_cluster, on, part, part, under_load=under_load)


@pytest.mark.chaos
def test_a_frozen_turn_commits_nothing_when_it_goes_on(new_cluster: MakeCluster, tmp_path: Any) -> None:
    cluster = new_cluster("amqp")
    frozen, _ = cluster.start(2)
    cluster.wait_until_stable()
    shard = min(cluster.shards_of(frozen))
    ledger = cluster.probe(shard)
    began, may_end = tmp_path / "began", tmp_path / "may-end"
    sent = ledger.append_when.send("turn", str(began), str(may_end))
    eventually(began.exists)

    cluster.freeze(frozen)
    # Its entity is free again once its worker's sessions are ended, and the turn begins a second time.
    eventually(lambda: began.stat().st_size == 2)
    may_end.touch()
    assert sent.result(timeout_s=10) == 0
    assert ledger.append.ask("behind") == 1
    cluster.resume(frozen)

    cluster.wait_until_stable()
    assert ledger.append.ask("last") == 2
    assert cluster.play.entities.state(ledger).entries == ["turn", "behind", "last"]
    cluster.assert_invariants()


@pytest.mark.chaos
def test_service_goes_on_for_the_shards_of_others_while_one_worker_is_frozen(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp")
    frozen, other = cluster.start(2)
    cluster.wait_until_stable()
    others = sorted(cluster.shards_of(other))

    cluster.freeze(frozen)
    took_s = cluster.ask_each(others)

    assert took_s < LEASE_TIMEOUT_S / 2
    cluster.resume(frozen)


@pytest.mark.chaos
def test_a_turn_whose_pool_process_is_frozen_runs_elsewhere(new_cluster: MakeCluster, tmp_path: Any) -> None:
    cluster = new_cluster("amqp", entity_starved_after_s=1.0)
    frozen, _ = cluster.start(2, slots=1)
    cluster.wait_until_stable()
    ledger = cluster.probe(min(cluster.shards_of(frozen)))
    began, may_end = tmp_path / "began", tmp_path / "may-end"
    sent = ledger.append_when.send("turn", str(began), str(may_end))
    eventually(began.exists)

    cluster.freeze(frozen, "child")
    eventually(lambda: began.stat().st_size == 2, timeout_s=LEASE_TIMEOUT_S + 5)
    may_end.touch()
    assert sent.result(timeout_s=10) == 0
    cluster.resume(frozen, "child")

    assert ledger.append.ask("last") == 1
    assert cluster.play.entities.state(ledger).entries == ["turn", "last"]
    cluster.assert_invariants()
