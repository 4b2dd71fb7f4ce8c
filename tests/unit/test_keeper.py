"""The keeper of one runner's leases: what it takes, hands over and loses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entitycelery.address import ShardId
from entitycelery.placement import Placement, Runner
from entitycelery.sharding.keeper import HANDOVER_S
from tests.storage.stepped import HOUR_S, SteppedClock
from tests.storage.support import change
from tests.unit.keepers import SETTINGS, SHARDS, Broken, Cluster, Runs
from tests.waiting import eventually


@pytest.fixture
def clock(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> SteppedClock:
    return SteppedClock(sqlite_url, monkeypatch)


@pytest.fixture
def cluster(sqlite_url: str, clock: SteppedClock) -> Iterator[Cluster]:
    made = Cluster(sqlite_url)
    with made.stack:
        yield made


def test_a_runner_that_is_alone_takes_everything_and_tells_its_worker(cluster: Cluster) -> None:
    one = cluster("one")

    eventually(lambda: one.worker.shards == SHARDS)

    assert set(cluster.holders().values()) == {cluster.instance_of(one)}
    assert one.keeper.held == SHARDS
    assert one.keeper.is_first
    assert (one.keeper.serves, one.keeper.leaves, one.keeper.ends) == (True, False, False)


def test_what_is_said_runs_out_before_a_lease_could(cluster: Cluster) -> None:
    one = cluster("one")

    eventually(lambda: one.worker.number > 5)

    assert 0 < one.worker.longest_s < SETTINGS.lease_timeout_s


def test_two_share_and_no_shard_is_ever_with_both(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))

    other = cluster("other")

    def shared() -> bool:
        # Read in this order: what one has given up may be with the other already, never the other way round.
        theirs = other.worker.shards
        assert_apart(theirs, one.worker.shards)
        return one.consumes(4) and other.consumes(4)

    eventually(shared)
    assert one.worker.shards | other.worker.shards == SHARDS
    assert one.keeper.is_first != other.keeper.is_first


def assert_apart(theirs: frozenset[ShardId], ours: frozenset[ShardId]) -> None:
    if theirs & ours:
        pytest.fail(f"with both: {theirs & ours}")


def test_a_shard_that_drains_work_on_goes_last_and_not_before_they_have_had_their_time(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    one.worker.say(busy=SHARDS)
    other = cluster("other")
    eventually(lambda: one.consumes(4))
    began_s = time.monotonic()

    eventually(lambda: other.consumes(4))

    assert time.monotonic() - began_s > HANDOVER_S / 2


def test_a_shard_goes_at_once_when_its_drain_has_ended(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    busy = next(iter(SHARDS))
    one.worker.say(busy=frozenset({busy}))
    one.worker.say(leaving=True)
    other = cluster("other")
    eventually(lambda: other.worker.shards >= SHARDS - {busy})

    began_s = time.monotonic()
    one.worker.say(busy=frozenset())

    eventually(lambda: other.worker.shards == SHARDS)
    assert time.monotonic() - began_s < HANDOVER_S + 2


def test_a_shard_is_kept_until_the_worker_has_stopped_to_consume_it_or_has_had_its_time(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    one.worker.carries_out = False
    other = cluster("other")
    eventually(lambda: one.consumes(4))
    began_s = time.monotonic()

    eventually(lambda: other.consumes(4))

    assert time.monotonic() - began_s > HANDOVER_S / 2


def test_a_worker_that_does_not_answer_loses_everything_and_gets_it_back_when_it_does(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    before = cluster.instance_of(one)

    one.worker.answers = False

    eventually(lambda: one.consumes(0) and not cluster.store.placement().runners)
    assert set(cluster.holders().values()) == {None}
    # A loop that runs goes on; none is taken.
    assert (one.keeper.serves, one.keeper.leaves, one.keeper.ends) == (False, False, False)
    one.worker.answers = True
    eventually(lambda: one.consumes(8))
    assert cluster.instance_of(one) != before


def test_an_evicted_runner_consumes_nothing_and_registers_anew(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    before = cluster.instance_of(one)

    change(cluster.store, "DELETE FROM {runner}")

    eventually(lambda: cluster.instance_of(one) != before)
    eventually(lambda: one.consumes(8))


def test_a_leaving_worker_gives_everything_up_and_its_keeper_ends(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))

    one.leave()

    assert one.keeper.has_left
    assert (one.keeper.serves, one.keeper.leaves, one.keeper.ends) == (False, True, True)
    assert cluster.store.placement().runners == ()
    assert set(cluster.holders().values()) == {None}


def test_a_starved_worker_gives_its_shards_to_the_fed_and_gets_them_back(cluster: Cluster) -> None:
    one, other = cluster("one"), cluster("other")
    eventually(lambda: one.consumes(4) and other.consumes(4))

    one.worker.say(starved=True)
    eventually(lambda: one.consumes(0) and other.consumes(8))
    one.worker.say(starved=False)

    eventually(lambda: one.consumes(4) and other.consumes(4))


def test_a_drained_worker_hosts_nothing_and_stays_registered(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    instance = cluster.instance_of(one)

    one.worker.say(drained=True)
    eventually(lambda: one.consumes(0) and set(cluster.holders().values()) == {None})
    assert cluster.instance_of(one) == instance
    assert (one.keeper.serves, one.keeper.leaves, one.keeper.ends) == (False, True, False)
    one.worker.say(drained=False)

    eventually(lambda: one.consumes(8))


def test_a_released_worker_registers_anew(cluster: Cluster) -> None:
    one = cluster("one")
    eventually(lambda: one.consumes(8))
    before = cluster.instance_of(one)

    one.worker.say(releases=1)

    eventually(lambda: cluster.instance_of(one) != before)
    eventually(lambda: one.consumes(8))


def test_a_runner_that_is_not_seen_any_more_is_removed_and_its_shards_are_served(cluster: Cluster) -> None:
    with cluster.host("frozen") as frozen:
        frozen.take(*range(8))
        began_s = time.monotonic()
        one = cluster("one")

        eventually(lambda: one.consumes(8), timeout_s=10)

        assert time.monotonic() - began_s > SETTINGS.lease_timeout_s * 0.8
        assert frozen.confirm() is None


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_nobody_is_removed_when_the_databases_clock_is_stepped(
    clock: SteppedClock, cluster: Cluster, by_s: float
) -> None:
    one, other = cluster("one"), cluster("other")
    eventually(lambda: one.consumes(4) and other.consumes(4))
    there = {cluster.instance_of(one), cluster.instance_of(other)}

    clock.step(by_s)

    began_s, told = time.monotonic(), one.worker.number
    eventually(lambda: time.monotonic() - began_s > 2 * SETTINGS.lease_timeout_s and one.worker.number > told + 5)
    assert {cluster.instance_of(one), cluster.instance_of(other)} == there
    eventually(lambda: one.worker.shards | other.worker.shards == SHARDS)


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_a_runner_that_falls_silent_as_the_databases_clock_is_stepped_is_removed_in_time(
    clock: SteppedClock, cluster: Cluster, by_s: float
) -> None:
    with cluster.host("frozen") as frozen:
        one = cluster("one")
        frozen.take(*range(8))
        eventually(lambda: one.worker.number > 2)
        frozen.confirm()

        clock.step(by_s)

        eventually(lambda: one.consumes(8), timeout_s=5 * SETTINGS.lease_timeout_s)
        assert frozen.confirm() is None


def test_whom_a_health_check_condemns_is_removed_unless_it_has_just_been_seen(cluster: Cluster) -> None:
    with cluster.host("condemned") as condemned:
        condemned.take(*range(8))

        def others(placement: Placement, me: Runner) -> list[Runner]:
            return [runner for runner in placement.runners if runner.instance != me.instance]

        one = cluster("one", others)
        for _ in range(5):
            # Seen all the time: a check cannot be the last word.
            assert condemned.confirm() == set(range(8))
            condemned.waits_s(0.1)
        assert not one.consumes(8)

        began_s = time.monotonic()
        eventually(lambda: one.consumes(8))
        assert time.monotonic() - began_s < SETTINGS.lease_timeout_s + 1


def test_a_session_that_fails_is_the_loss_of_all_until_another_holds_them_again(cluster: Cluster) -> None:
    broken = Broken(cluster.store)
    one = Runs(broken, "one")  # type: ignore[arg-type]
    eventually(lambda: one.consumes(8))

    broken.is_broken = True
    eventually(lambda: one.consumes(0))
    assert one.keeper.held == frozenset()
    eventually(lambda: broken.asked > 2)
    assert one.consumes(0)
    broken.is_broken = False

    eventually(lambda: one.consumes(8), timeout_s=10)
    one.leave()


def test_a_worker_can_leave_though_the_store_does_not_answer(cluster: Cluster) -> None:
    broken = Broken(cluster.store)
    one = Runs(broken, "one")  # type: ignore[arg-type]
    eventually(lambda: one.consumes(8))
    broken.is_broken = True
    eventually(lambda: one.consumes(0))

    one.leave()

    assert one.keeper.has_left


def test_a_database_of_another_folder_is_another_cluster(cluster: Cluster, tmp_path: Path) -> None:
    one = cluster("one")
    elsewhere = Cluster(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    with elsewhere.stack:
        other = elsewhere("other")

        eventually(lambda: one.worker.shards == other.worker.shards == SHARDS)
