"""A worker whose slots are all taken gives its shards to those that have free ones, and gets them back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.clusters import MakeCluster
from tests.cluster.test_takeover import AS_THEY_COME
from tests.waiting import eventually

STARVED_AFTER_S = 2.0
# Of it 5 s are entity_starved_after_s as it comes; here that is shorter.
NOBODY_WAITS_LONGER_S = STARVED_AFTER_S + 5.0


def occupy(cluster: Any, folder: Path, count: int) -> list[Path]:
    """Have ordinary tasks take this many slots of one worker; each until its file is gone."""
    marks = [folder / f"occupied{number}" for number in range(count)]
    for mark in marks:
        cluster.play.app.send_task("chaos.occupy", [str(mark)])
    eventually(lambda: all(mark.exists() for mark in marks))
    return marks


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["amqp", pytest.param("redis", marks=pytest.mark.chaos_long)])
def test_no_entity_waits_for_ordinary_tasks_that_fill_a_worker(
    new_cluster: MakeCluster, tmp_path: Path, broker: str
) -> None:
    cluster = new_cluster(broker, entity_starved_after_s=STARVED_AFTER_S, **AS_THEY_COME)
    [full] = cluster.start()
    # The tasks are all in one worker before there is another.
    marks = occupy(cluster, tmp_path, 2)
    [free] = cluster.start()
    cluster.wait_until_stable()

    took_s = cluster.ask_each()
    print(f"the last of {len(cluster.shards)} entities waited {took_s:.1f} s")
    assert took_s < NOBODY_WAITS_LONGER_S
    cluster.wait_until_stable(full, free)
    assert cluster.shards_of(full) == set()
    # It stays out: nobody waits again.
    assert cluster.ask_each() < 1.0

    for mark in marks:
        mark.unlink()
    eventually(lambda: cluster.shards_of(full))
    cluster.wait_until_stable()
    assert cluster.ask_each() < 2.0
    cluster.assert_invariants()


@pytest.mark.chaos
def test_no_entity_waits_for_long_turns_that_fill_a_worker(new_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = new_cluster("amqp", entity_starved_after_s=0.5, **AS_THEY_COME)
    full, _ = cluster.start(2, slots=1)
    cluster.wait_until_stable()
    first, *others = sorted(cluster.shards_of(full))
    began, may_end = tmp_path / "began", tmp_path / "may-end"
    sent = cluster.probe(first).append_when.send("turn", str(began), str(may_end))
    eventually(began.exists)

    took_s = cluster.ask_each(others)
    was_running = sent_is_running(cluster, sent)

    # The turn itself takes two seconds.
    assert took_s < 1.8
    assert was_running
    may_end.touch()
    assert sent.result(timeout_s=10) == 0
    # The reply comes before the worker has said that its slot is free; until then it is as it should be without shards.
    eventually(lambda: cluster.shards_of(full))
    cluster.wait_until_stable()
    assert len(cluster.shards_of(full)) == len(cluster.shards) // 2


def sent_is_running(cluster: Any, sent: Any) -> bool:
    return not cluster.play.entities.store.replies([sent.id])


@pytest.mark.chaos
def test_workers_that_are_all_full_keep_their_shards(new_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = new_cluster("amqp", entity_starved_after_s=0.5, **AS_THEY_COME)
    [full] = cluster.start(slots=1)
    [mark] = occupy(cluster, tmp_path, 1)
    sent = cluster.probe(0).append.send("waits")
    began_s = time.monotonic()

    eventually(lambda: (runner := cluster.runner_of(full)) is not None and runner.starved)
    assert len(cluster.shards_of(full)) == len(cluster.shards)
    mark.unlink()

    assert sent.result(timeout_s=10) == 0
    print(f"answered after {time.monotonic() - began_s:.1f} s")
