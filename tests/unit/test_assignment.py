"""Who should host what: shares are true to the weights, little moves, and all who compute it agree."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery.address import ShardId
from entitycelery.placement import Runner
from entitycelery.sharding.assignment import assigned, quotas, score
from tests.health.records import runner

SHARDS = [ShardId("default", number) for number in range(64)]
# Of 64 shards; what a join or leave moves between the others beside what their quotas force. Dealing the shards out
# anew moves some 48.
MOVED_ON_AVERAGE = 4
MOVED_AT_MOST = 16

weights = st.floats(0.1, 10.0)
fleets = st.lists(st.tuples(st.integers(0, 2**32 - 1), weights), min_size=1, max_size=8, unique_by=lambda pair: pair[0])


def fleet(pairs: Sequence[tuple[int, float]]) -> list[Runner]:
    return [runner(f"{number:08x}", instance=f"{number:08x}", weight=weight) for number, weight in pairs]


def random_fleet(seed: int, most: int = 8) -> list[Runner]:
    chosen = random.Random(seed)
    return fleet([(chosen.getrandbits(32), chosen.uniform(0.2, 5.0)) for _ in range(chosen.randint(2, most))])


def shares(found: dict[ShardId, str]) -> Counter[str]:
    return Counter(found.values())


def quotas_of(runners: Sequence[Runner]) -> dict[str, int]:
    return quotas({one.instance: one.weight for one in runners}, len(SHARDS))


@given(fleets)
def test_every_shard_is_assigned_once_and_no_share_misses_its_weight_by_a_whole_shard(
    pairs: list[tuple[int, float]],
) -> None:
    runners = fleet(pairs)
    total = sum(one.weight for one in runners)

    found = assigned(runners, SHARDS)

    assert set(found) == set(SHARDS)
    for one in runners:
        assert abs(shares(found)[one.instance] - len(SHARDS) * one.weight / total) < 1


@given(
    st.lists(st.floats(1.0, 2.5), min_size=4, max_size=4), st.lists(st.integers(0, 2**32 - 1), min_size=4, unique=True)
)
def test_shares_of_four_runners_are_within_15_percent_of_their_weights(given: list[float], numbers: list[int]) -> None:
    runners = fleet(list(zip(numbers, given, strict=False)))
    total = sum(one.weight for one in runners)

    found = assigned(runners, SHARDS)

    for one in runners:
        exact = len(SHARDS) * one.weight / total
        assert abs(shares(found)[one.instance] - exact) <= 0.15 * exact


def test_shares_of_four_equal_runners_are_equal() -> None:
    for seed in range(50):
        numbers = random.Random(seed).sample(range(2**32), 4)

        found = assigned(fleet([(number, 1.0) for number in numbers]), SHARDS)

        assert set(shares(found).values()) == {16}


@pytest.mark.parametrize("is_equal", [True, False], ids=["equal", "weighted"])
def test_a_join_or_a_leave_moves_little_between_the_others(is_equal: bool) -> None:
    moved = []
    for seed in range(300):
        runners = random_fleet(seed)
        if is_equal:
            runners = fleet([(int(one.instance, 16), 1.0) for one in runners])
        *others, comes = runners
        before, after = assigned(others, SHARDS), assigned(runners, SHARDS)
        had, has = quotas_of(others), quotas_of(runners)
        forced = sum(max(0, has[name] - had[name]) for name in had)
        elsewhere = [shard for shard in SHARDS if before[shard] != after[shard] != comes.instance]
        moved.append(len(elsewhere) - forced)

    assert sum(moved) / len(moved) <= MOVED_ON_AVERAGE
    assert max(moved) <= MOVED_AT_MOST


@given(fleets, st.randoms(use_true_random=False))
def test_all_who_compute_it_agree_whatever_the_order_of_their_rows(
    pairs: list[tuple[int, float]], mixed: random.Random
) -> None:
    runners, shards = fleet(pairs), list(SHARDS)
    found = assigned(runners, shards)
    mixed.shuffle(runners)
    mixed.shuffle(shards)

    assert assigned(runners, shards) == found


@given(fleets)
def test_no_shard_and_runner_would_both_rather_have_each_other(pairs: list[tuple[int, float]]) -> None:
    runners = fleet(pairs)
    found = assigned(runners, SHARDS)
    points = {(one.instance, shard): score(one.instance, one.weight, shard) for one in runners for shard in SHARDS}
    worst = {
        one.instance: min(
            (points[one.instance, shard] for shard in SHARDS if found[shard] == one.instance), default=0.0
        )
        for one in runners
        if quotas_of(runners)[one.instance]
    }

    for shard in SHARDS:
        for name, least in worst.items():
            assert points[name, shard] <= max(points[found[shard], shard], least)


def test_each_group_is_shared_by_those_that_serve_it() -> None:
    gpu = [ShardId("gpu", number) for number in range(8)]
    runners = [
        runner("a", groups=("default",)),
        runner("b", groups=("default", "gpu")),
        runner("c", groups=("gpu",)),
    ]

    found = assigned(runners, [*SHARDS, *gpu])

    assert shares({shard: found[shard] for shard in gpu}) == {"i-b": 4, "i-c": 4}
    assert shares({shard: found[shard] for shard in SHARDS}) == {"i-a": 32, "i-b": 32}


def test_shards_of_a_group_that_nobody_serves_are_left_out() -> None:
    assert assigned([runner("a", groups=("gpu",))], SHARDS) == {}
    assert assigned([], SHARDS) == {}


def test_a_starved_runner_gets_nothing_while_another_is_fed() -> None:
    found = assigned([runner("a", starved=True), runner("b")], SHARDS)

    assert set(found.values()) == {"i-b"}


def test_starved_runners_share_what_nobody_else_serves() -> None:
    found = assigned([runner("a", starved=True), runner("b", starved=True)], SHARDS)

    assert shares(found) == {"i-a": 32, "i-b": 32}


def test_a_leaving_runner_gets_nothing_though_it_is_the_last() -> None:
    assert set(assigned([runner("a", leaving=True), runner("b", starved=True)], SHARDS).values()) == {"i-b"}
    assert assigned([runner("a", leaving=True)], SHARDS) == {}


@given(st.dictionaries(st.text(min_size=1, max_size=8), weights, min_size=1, max_size=10), st.integers(0, 500))
def test_quotas_add_up_and_are_shares_rounded_up_or_down(given: dict[str, float], count: int) -> None:
    found = quotas(given, count)

    assert sum(found.values()) == count
    total = sum(given.values())
    assert all(abs(found[name] - count * weight / total) < 1.000001 for name, weight in given.items())


@pytest.mark.parametrize(
    ("instance", "weight", "shard", "expected"),
    [
        ("0a1b2c3d", 1.0, ShardId("default", 0), 98.2007556107198),
        ("0a1b2c3d", 2.5, ShardId("gpu", 63), 9.307181363710232),
        ("ffffffff", 1.0, ShardId("default", 17), 0.2578289797454313),
    ],
)
def test_score_is_a_wire_format(instance: str, weight: float, shard: ShardId, expected: float) -> None:
    assert score(instance, weight, shard) == pytest.approx(expected, rel=1e-12)


def test_assignment_is_a_wire_format() -> None:
    runners = fleet([(1, 1.0), (2, 1.0), (3, 2.0)])

    found = assigned(runners, [ShardId("default", number) for number in range(8)])

    assert [int(found[ShardId("default", number)]) for number in range(8)] == [2, 1, 3, 3, 2, 3, 3, 1]
