"""Workers are told to end: their shards go at once, or after their turns, and they end in time, whatever hangs."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import Cluster, MakeCluster
from tests.cluster.nodes import Node
from tests.cluster.test_rebalancing import assert_never_interrupted, waits_s
from tests.cluster.test_takeover import AS_THEY_COME
from tests.waiting import eventually

DRAIN_TIMEOUT_S = 2.0
# Python, the pool and the runner process end in it, on a busy machine.
END_S = 8.0
HELD_BACK_AT_MOST_S = 2.0


class HeldTurn:
    """A turn of one shard's entity that ends when it may, or by itself after two seconds."""

    def __init__(self, cluster: Cluster, shard: int, folder: Path) -> None:
        self.ledger = cluster.probe(shard)
        self._began, self._may_end = folder / "began", folder / "may-end"
        self.sent = self.ledger.append_when.send("turn", str(self._began), str(self._may_end))
        eventually(self._began.exists)

    @property
    def attempts(self) -> int:
        return self._began.stat().st_size

    def may_end(self) -> None:
        self._may_end.touch()


def two_workers(new_cluster: MakeCluster, **conf: Any) -> tuple[Cluster, Node, Node]:
    cluster = new_cluster("amqp", **{**AS_THEY_COME, **conf})
    ends, stays = cluster.start(2)
    cluster.wait_until_stable()
    return cluster, ends, stays


@pytest.mark.chaos
def test_shards_are_handed_over_before_turns_end(new_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster, ends, stays = two_workers(new_cluster, entity_drain_timeout_s=20.0)
    mine = sorted(cluster.shards_of(ends))
    held = HeldTurn(cluster, mine[0], tmp_path)

    ends.worker.terminate()
    cluster.wait_until_stable(stays, within_s=5)
    # The turn goes on, its entity is claimed, and all others of its shard need not wait.
    assert cluster.ask_each(mine[1:]) < HELD_BACK_AT_MOST_S
    assert ends.is_running
    held.may_end()

    assert held.sent.result(timeout_s=10) == 0
    assert held.attempts == 1
    assert ends.worker.exit_code() == 0
    # Who ends takes nothing again, not even what nobody else has yet.
    after = [line.what for line in ends.lease_lines()]
    assert "taken" not in after[after.index("released") :]


@pytest.mark.chaos
def test_shards_are_kept_until_turns_have_ended_where_that_is_wanted(new_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster, ends, stays = two_workers(new_cluster, entity_preemptive_shutdown=False)
    mine = cluster.shards_of(ends)
    held = HeldTurn(cluster, min(mine), tmp_path)

    ends.worker.terminate()
    eventually(lambda: "Warm shutdown" in ends.worker.log())
    cluster.stage.play(0.7)
    assert cluster.shards_of(ends) == mine
    held.may_end()

    assert held.sent.result(timeout_s=10) == 0
    assert held.attempts == 1
    assert ends.worker.exit_code() == 0
    cluster.wait_until_stable(stays, within_s=5)


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["prefork", pytest.param("threads", marks=pytest.mark.chaos_long)])
def test_turns_that_take_longer_are_given_up_and_run_elsewhere(
    new_cluster: MakeCluster, tmp_path: Path, pool: str
) -> None:
    cluster = new_cluster("amqp", entity_drain_timeout_s=0.5, **AS_THEY_COME)
    ends, _ = cluster.start(2, pool=pool)
    cluster.wait_until_stable()
    held = HeldTurn(cluster, min(cluster.shards_of(ends)), tmp_path)

    took_s = cluster.stop(ends)

    assert took_s < 0.5 + END_S
    eventually(lambda: held.attempts == 2)
    held.may_end()
    assert held.sent.result(timeout_s=10) == 0
    assert cluster.play.entities.state(held.ledger).entries == ["turn"]


def cut_database(node: Node) -> None:
    node.database.cut()


def silence_database(node: Node) -> None:
    node.database.silence()


def cut_broker(node: Node) -> None:
    node.broker.cut()


@pytest.mark.chaos
@pytest.mark.parametrize(
    "cut",
    [silence_database, cut_broker, pytest.param(cut_database, marks=pytest.mark.chaos_long)],
    ids=lambda cut: cut.__name__,
)
def test_a_worker_ends_in_bounded_time_though_a_server_is_away(new_cluster: MakeCluster, cut: Any) -> None:
    cluster = new_cluster("redis", entity_drain_timeout_s=DRAIN_TIMEOUT_S)
    [node] = cluster.start(wired=True)
    cluster.wait_until_stable()
    cluster.load(1)
    runner, pool = node.worker.runner_pids(), node.worker.pool_pids()

    cut(node)
    cluster.stage.play(0.5)
    took_s = cluster.stop(node)

    print(f"{cut.__name__}: ended after {took_s:.1f} s")
    assert took_s < DRAIN_TIMEOUT_S + END_S
    assert runner
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in [*runner, *pool]), timeout_s=10)
    cluster.start()
    cluster.verdict()


@pytest.mark.chaos
@pytest.mark.parametrize(
    "how", ["cold", *(pytest.param(how, marks=pytest.mark.chaos_long) for how in ("soft", "remapped"))]
)
def test_other_ways_to_end_hand_over_too(new_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "remapped":
        monkeypatch.setenv("REMAP_SIGTERM", "SIGQUIT")
    soft = {} if how == "cold" else {"worker_soft_shutdown_timeout": 1.0}
    cluster, ends, stays = two_workers(new_cluster, **soft)
    mine = sorted(cluster.shards_of(ends))

    began_s = time.monotonic()
    took_s = cluster.stop(ends, signal.SIGTERM if how == "remapped" else signal.SIGQUIT)

    assert took_s < 1.0 + END_S
    cluster.ask_each(mine)
    print(f"{how}: ended after {took_s:.1f} s, served after {time.monotonic() - began_s:.1f} s")
    cluster.wait_until_stable(stays, within_s=5)


@pytest.mark.chaos
def test_a_rolling_restart_of_three_workers_loses_nothing_and_holds_nothing_back(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp", entity_shards_per_group=16, **AS_THEY_COME)
    first = cluster.start(3)
    cluster.wait_until_stable()
    cluster.load()
    began_s = time.monotonic()

    for node in first:
        cluster.start()
        cluster.wait_until_stable()
        cluster.stop(node)
        cluster.wait_until_stable()

    ended_s = time.monotonic()
    cluster.stage.play(0.5)
    history = cluster.verdict()
    assert_never_interrupted(history, began_s, ended_s)
    assert waits_s(history, began_s, ended_s)[-1] < HELD_BACK_AT_MOST_S
