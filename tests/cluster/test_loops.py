"""A loop runs on exactly one runner, whatever is killed, frozen or cut, and on some runner soon after."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.cluster import diary
from tests.cluster.clusters import LEASE_TIMEOUT_S, MakeCluster
from tests.cluster.loops import NAME, STORES, Loops
from tests.cluster.nodes import Part
from tests.waiting import eventually

Record = Callable[[str, object], None]

AS_THEY_COME = {"entity_refresh_interval_s": 1.0, "entity_lease_timeout_s": 10.0, "entity_health": "auto"}
"""No time-out of leases has a part in a takeover."""
KILLED: tuple[Part, ...] = ("runner", "loop", "all", "parent")


def kill(loops: Loops, part: Part) -> float:
    """Kill a part of the worker at which the loop runs; how long until another one ran."""
    victim = loops.holder()
    before = loops.wait_for_more()
    began_s = time.time()
    loops.cluster.kill(victim, part)
    _, took_s = loops.wait_for_successor(before.fence, began_s)
    print(f"{part} killed: another loop after {took_s:.2f} s")
    return took_s


@pytest.mark.chaos
@pytest.mark.parametrize("on", STORES)
def test_a_loop_is_taken_over_in_time_and_never_runs_twice(
    new_cluster: MakeCluster, on: str, record_property: Record
) -> None:
    loops = Loops(new_cluster, on, **AS_THEY_COME)
    loops.start(3)

    took_s = {part: kill(loops, part) for part in KILLED}

    record_property(f"takeover of a loop, {on}", took_s)
    loops.wait_for_more()
    loops.assert_never_two()
    assert max(took_s.values()) < loops.takeover_s()


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_loop_runs_beside_every_pool_in_a_process_of_its_own(new_cluster: MakeCluster, pool: str) -> None:
    loops = Loops(new_cluster)
    [node] = loops.start(pool=pool)

    latest = loops.wait_for_more()

    assert [latest.pid] == node.worker.loop_pids()
    assert latest.pid not in node.worker.pool_pids()
    stored = loops.stored()
    assert (stored.pid, stored.fence, stored.healthy) == (latest.pid, latest.fence, True)
    assert stored.holder is not None
    assert stored.holder.address == node.address
    assert loops.cluster.play.ledger("loop").append.ask("hello") >= 1


@pytest.mark.chaos
@pytest.mark.parametrize("on", STORES)
def test_a_worker_that_ends_hands_its_loop_over(new_cluster: MakeCluster, on: str) -> None:
    loops = Loops(new_cluster, on)
    loops.start(2)
    leaving = loops.holder()
    before = loops.wait_for_more()

    loops.cluster.stop(leaving)
    ended = loops.last_of(before.fence)
    _, took_s = loops.wait_for_successor(before.fence, ended.at_s)

    print(f"handed over: another loop {took_s:.2f} s after the end of the one before")
    assert [entry.what for entry in loops.entries() if entry.fence == before.fence][-2:] == ["ends", "leads no more"]
    assert "handed over: leaving" in leaving.worker.log()
    loops.wait_for_more()
    loops.assert_never_two()
    assert took_s < loops.takeover_s()


@pytest.mark.chaos
@pytest.mark.parametrize("on", STORES)
def test_a_loop_whose_runner_process_is_frozen_ends_by_itself_and_runs_elsewhere(
    new_cluster: MakeCluster, on: str
) -> None:
    loops = Loops(new_cluster, on)
    loops.start(2)
    frozen = loops.holder()
    before = loops.wait_for_more()

    began_s = time.time()
    loops.cluster.freeze(frozen, "runner")
    _, took_s = loops.wait_for_successor(before.fence, began_s)
    last = loops.last_of(before.fence)
    loops.wait_for_more(100)
    loops.cluster.resume(frozen, "runner")
    loops.wait_for_more(100)

    print(f"the loop ended {last.at_s - began_s:.2f} s after the freeze, another one ran after {took_s:.2f} s")
    assert last.at_s - began_s < 1.25
    loops.cluster.wait_until_stable()
    loops.wait_for_more()
    loops.assert_never_two()


@pytest.mark.chaos
@pytest.mark.parametrize("on", STORES)
def test_a_loop_whose_process_is_frozen_is_found_dead_and_started_again(new_cluster: MakeCluster, on: str) -> None:
    loops = Loops(new_cluster, on)
    [node] = loops.start()
    before = loops.wait_for_more()

    loops.cluster.freeze(node, "loop")
    eventually(lambda: not loops.stored().healthy)
    loops.cluster.kill(node, "loop")

    loops.wait_for_successor(before.fence, time.time())
    eventually(lambda: loops.stored().healthy)
    loops.assert_never_two()


@pytest.mark.chaos
@pytest.mark.parametrize("silently", [False, True], ids=["cut", "silent"])
@pytest.mark.parametrize("deaf", [False, True], ids=["obedient", "deaf"])
def test_a_loop_whose_runner_loses_its_database_ends_and_runs_elsewhere(
    new_cluster: MakeCluster, silently: bool, deaf: bool
) -> None:
    loops = Loops(new_cluster)
    loops.start(1, wired=True)
    [lonely] = loops.cluster.nodes
    loops.cluster.start(1)
    loops.cluster.wait_until_stable()
    eventually(lambda: loops.entities.move_singleton(NAME, lonely.address))
    eventually(lambda: loops.holder() is lonely)
    before = loops.wait_for_more(50)
    loops.tell(*([diary.DEAF] if deaf else []))

    began_s = time.time()
    if silently:
        lonely.database.silence()
    else:
        loops.cluster.cut_database(lonely)
    _, took_s = loops.wait_for_successor(before.fence, began_s)
    last = loops.last_of(before.fence)

    print(f"the loop ended {last.at_s - began_s:.2f} s after it, another one ran after {took_s:.2f} s")
    assert last.at_s - began_s < 1.25
    assert lonely.worker.loop_pids() == []
    if not silently:
        assert took_s < loops.takeover_s()
    lonely.database.cut()
    lonely.database.mend()
    loops.cluster.wait_until_stable()
    loops.wait_for_more(50)
    loops.assert_never_two()


@pytest.mark.chaos
def test_a_loop_that_does_not_hear_is_ended_with_its_process(new_cluster: MakeCluster) -> None:
    loops = Loops(new_cluster, entity_singleton_stop_timeout_s=1.0)
    loops.start(2)
    before = loops.wait_for_more()
    first = loops.holder()
    loops.tell(diary.DEAF)

    began_s = time.time()
    loops.cluster.stop(first)
    loops.wait_for_successor(before.fence, began_s)

    last = loops.last_of(before.fence)
    assert last.what == "runs"
    assert 0.9 < last.at_s - began_s < 3.0
    assert "did not stop within 1 s" in str(loops.stored().last_failure)
    loops.wait_for_more()
    loops.assert_never_two()


@pytest.mark.chaos
def test_a_loop_that_raises_or_returns_is_started_again_with_growing_pauses(new_cluster: MakeCluster) -> None:
    loops = Loops(new_cluster)
    [node] = loops.start()
    loops.tell(diary.FAILS)
    first = loops.wait_for_more()
    loops.entities.restart_singleton(NAME)

    begun = eventually(lambda: (found := loops.begun(first.fence)) and len(found) >= 5 and found, timeout_s=60)
    pauses_s = [later.at_s - earlier.at_s for earlier, later in pairwise(begun)][:4]

    print(f"pauses: {[round(pause, 2) for pause in pauses_s]}")
    assert all(pause >= wanted for pause, wanted in zip(pauses_s, (0.5, 1.0, 2.0, 4.0), strict=True))
    failed = loops.stored()
    assert failed.last_failure == "ValueError: as the test wants it"
    assert failed.restarts >= 5
    assert "ValueError: as the test wants it" in node.worker.log()

    loops.tell(diary.RETURNS)
    loops.entities.restart_singleton(NAME)
    restarts = failed.restarts
    eventually(lambda: loops.stored().restarts >= restarts + 3)
    loops.tell()
    eventually(lambda: loops.stored().healthy)
    loops.assert_never_two()


@pytest.mark.chaos
@pytest.mark.parametrize("on", STORES)
def test_a_loop_is_moved_to_a_runner_for_as_long_as_that_lives(new_cluster: MakeCluster, on: str) -> None:
    loops = Loops(new_cluster, on)
    loops.start(3)
    before = loops.wait_for_more()
    target = loops.others()[0]

    moved_to = loops.entities.move_singleton(NAME, target.address)
    first, _ = loops.wait_for_successor(before.fence, time.time())

    assert moved_to is not None
    assert first.node == target.name
    assert getattr(loops.stored().wanted, "instance", None) == moved_to.instance
    # Shards move, and it stays.
    others = [node for node in loops.cluster.nodes if node is not target]
    for node in others:
        loops.cluster.stop(node)
    loops.cluster.start(1)
    loops.cluster.wait_until_stable()
    assert loops.wait_for_more().fence == first.fence
    loops.cluster.kill(target)
    second, _ = loops.wait_for_successor(first.fence, time.time())
    assert second.node == loops.cluster.nodes[0].name
    loops.assert_never_two()


@pytest.mark.chaos
def test_a_loop_is_moved_away_and_does_not_come_back(new_cluster: MakeCluster) -> None:
    loops = Loops(new_cluster)
    loops.start(2)
    before = loops.wait_for_more()
    left = loops.holder()

    assert loops.entities.move_singleton(NAME) is None
    first, _ = loops.wait_for_successor(before.fence, time.time())

    assert first.node != left.name
    assert loops.wait_for_more(200).fence == first.fence
    [other] = loops.others()
    assert other is left
    loops.cluster.kill(loops.holder())
    second, _ = loops.wait_for_successor(first.fence, time.time())
    assert second.node == left.name
    loops.assert_never_two()


@pytest.mark.chaos
def test_a_restart_happens_where_the_loop_is(new_cluster: MakeCluster) -> None:
    loops = Loops(new_cluster)
    loops.start(2)
    before = loops.wait_for_more()

    loops.entities.restart_singleton(NAME)
    first, _ = loops.wait_for_successor(before.fence, time.time())

    assert (first.node, first.pid == before.pid) == (before.node, False)
    assert loops.last_of(before.fence).what == "leads no more"
    assert loops.stored().restarts == 1
    assert loops.stored().last_failure is None


@pytest.mark.chaos
def test_code_that_does_not_load_takes_no_loop_from_a_worker_where_it_runs(new_cluster: MakeCluster) -> None:
    loops = Loops(new_cluster)
    [old] = loops.start()
    before = loops.wait_for_more()

    # Several, so that one of them surely gets the shard.
    broken = loops.cluster.start(3, loops_are_broken=True)
    loops.cluster.wait_until_stable()
    if loops.has_shard(old):
        loops.entities.move_singleton(NAME, broken[0].address)
    eventually(lambda: any("ImportError: as the test wants it" in node.worker.log() for node in broken))

    assert loops.wait_for_more(100).fence == before.fence
    loops.cluster.stop(old)
    [good] = loops.cluster.start(1)
    first, _ = loops.wait_for_successor(before.fence, time.time())
    assert first.node == good.name
    loops.assert_never_two()


@pytest.mark.chaos
def test_a_drained_worker_hands_its_loop_over_and_takes_it_when_it_is_resumed(new_cluster: MakeCluster) -> None:
    loops = Loops(new_cluster)
    [node] = loops.start()
    before = loops.wait_for_more()
    control = loops.cluster.play.app.control

    control.broadcast("entity_drain", destination=[node.address])
    eventually(lambda: loops.stored().holder is None)
    assert loops.last_of(before.fence).what == "leads no more"
    control.broadcast("entity_resume", destination=[node.address])

    loops.wait_for_successor(before.fence, time.time())


@pytest.mark.chaos_long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("on", STORES)
def test_never_two_loops_over_many_faults(new_cluster: MakeCluster, on: str) -> None:
    loops = Loops(new_cluster, on, entity_singleton_stop_timeout_s=1.0)
    loops.start(3, wired=True)
    choose = loops.cluster.stage.random

    for number in range(40):
        fault = choose.choice(sorted(FAULTS))
        loops.tell(*([diary.DEAF] if choose.random() < 0.3 else []))
        before = loops.wait_for_more(within_s=60)
        print(f"{number}: {fault}, {before.node} runs it")
        FAULTS[fault](loops)
        loops.wait_for_more(choose.choice([1, 50]), within_s=60)
        loops.assert_never_two()


def _freeze_and_resume(loops: Loops) -> None:
    node = loops.holder()
    loops.cluster.freeze(node, "runner")
    loops.play(loops.cluster.stage.random.choice([0.5, 1.0, 2 * LEASE_TIMEOUT_S]))
    loops.cluster.resume(node, "runner")


def _cut_and_mend(loops: Loops) -> None:
    node = loops.holder()
    if not loops.cluster.url.startswith("postgresql"):
        return
    if loops.cluster.stage.random.random() < 0.5:
        node.database.silence()
    loops.play(loops.cluster.stage.random.uniform(0.0, 1.5))
    node.database.cut()
    loops.play(loops.cluster.stage.random.uniform(0.0, 3.0))
    node.database.mend()


def _kill_and_replace(loops: Loops) -> None:
    loops.cluster.kill(loops.holder())
    loops.cluster.start(1, wired=True)


def _stop_and_replace(loops: Loops) -> None:
    loops.cluster.stop(loops.holder())
    loops.cluster.start(1, wired=True)


def _kill_part(part: Part) -> Callable[[Loops], None]:
    return lambda loops: loops.cluster.kill(loops.holder(), part)


FAULTS: dict[str, Callable[[Loops], None]] = {
    "kill loop": _kill_part("loop"),
    "kill runner": _kill_part("runner"),
    "kill worker": _kill_and_replace,
    "stop worker": _stop_and_replace,
    "freeze": _freeze_and_resume,
    "cut": _cut_and_mend,
    "restart": lambda loops: loops.entities.restart_singleton(NAME),
    "move": lambda loops: print(loops.entities.move_singleton(NAME)),
    "move there": lambda loops: print(loops.entities.move_singleton(NAME, loops.others()[0].address)),
}
