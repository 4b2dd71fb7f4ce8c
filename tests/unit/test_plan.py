"""What a schedule does about ticks it missed: pure, so every rule is shown with instants and without a clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.plan import Plan, jitter, plan
from entitycelery.scheduler.policy import Policy
from entitycelery.scheduler.recurrence import Cron, Every, Once, Recurrence, Tick

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTELY = Every(60, NOON)
MANY = 1_000


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def tick(seconds: float) -> Tick:
    return Tick(at(seconds).isoformat(), at(seconds))


def planned(policy: Policy, now_s: float, *, next_s: float = 60, budget: int = MANY, of: Recurrence = MINUTELY) -> Plan:
    return plan(of, policy, tick(next_s), at(now_s), budget=budget)


def fired(made: Plan) -> list[float]:
    return [(fire.at - NOON).total_seconds() for fire in made.fire]


def test_nothing_fires_early() -> None:
    assert planned(Policy(), 59.999999) == Plan((), 0, tick(60), at(60))


def test_a_tick_fires_when_it_is_due_and_the_next_one_stands() -> None:
    assert planned(Policy(), 60) == Plan((tick(60),), 0, tick(120), at(120))


@pytest.mark.parametrize("misfire", ["skip", "latest", "all"])
def test_ticks_within_the_grace_all_fire_whatever_the_policy(misfire: Any) -> None:
    made = planned(Policy(misfire=misfire, grace_s=180), 240)

    assert (fired(made), made.skipped, made.next) == ([60, 120, 180, 240], 0, tick(300))


@pytest.mark.parametrize(
    ("misfire", "fires", "skipped"),
    [
        # 60 to 600 are later than the grace, 660 and 720 are not.
        ("skip", [660, 720], 10),
        ("latest", [600, 660, 720], 9),
        ("all", [60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 660, 720], 0),
    ],
)
def test_of_the_late_ticks_none_the_last_or_all_fire(misfire: Any, fires: list[float], skipped: int) -> None:
    made = planned(Policy(misfire=misfire, grace_s=60), 720)

    assert fired(made) == fires
    assert (made.skipped, made.skipped_more, made.next, made.look_at) == (skipped, False, tick(780), at(780))


@pytest.mark.parametrize(("misfire", "fires", "skipped"), [("skip", [], 1), ("latest", [60], 0), ("all", [60], 0)])
def test_a_single_late_tick_is_the_last_of_the_late_ones(misfire: Any, fires: list[float], skipped: int) -> None:
    made = planned(Policy(misfire=misfire, grace_s=10), 75)

    assert (fired(made), made.skipped, made.next) == (fires, skipped, tick(120))


@pytest.mark.parametrize(
    ("misfire", "fires", "skipped"),
    [("skip", [660, 720], 10), ("latest", [600, 660, 720], 9), ("all", [420, 480, 540, 600, 660, 720], 6)],
)
def test_too_old_ticks_are_dropped_whatever_the_policy(misfire: Any, fires: list[float], skipped: int) -> None:
    made = planned(Policy(misfire=misfire, grace_s=60, skip_if_older_than_s=300), 720)

    assert (fired(made), made.skipped, made.next) == (fires, skipped, tick(780))


def test_too_old_may_be_younger_than_late() -> None:
    made = planned(Policy(grace_s=600, skip_if_older_than_s=100), 720)

    assert (fired(made), made.skipped) == ([660, 720], 10)


def test_a_lone_tick_that_is_too_old_is_dropped_and_the_next_is_waited_for() -> None:
    daily = Every(86_400, NOON)

    made = plan(daily, Policy(skip_if_older_than_s=300), tick(86_400), at(90_000), budget=MANY)

    assert made == Plan((), 1, tick(172_800), at(172_800))


def test_all_catches_up_at_its_pace() -> None:
    policy = Policy(misfire="all", grace_s=0, catch_up_per_s=5)

    first = planned(policy, 1_000)
    assert first.next is not None
    assert first.look_at is not None
    second = plan(MINUTELY, policy, first.next, first.look_at, budget=MANY)

    assert fired(first) == [60, 120, 180, 240, 300]
    assert first.look_at == at(1_001)
    assert fired(second) == [360, 420, 480, 540, 600]
    assert second.look_at == at(1_002)


def test_a_pace_below_one_per_second_fires_one_and_waits() -> None:
    made = planned(Policy(misfire="all", grace_s=0, catch_up_per_s=0.5), 1_000)

    assert (fired(made), made.next, made.look_at) == ([60], tick(120), at(1_002))


def test_a_budget_below_the_pace_keeps_the_pace() -> None:
    made = planned(Policy(misfire="all", grace_s=0, catch_up_per_s=10), 1_000, budget=2)

    assert (fired(made), made.look_at) == ([60, 120], at(1_000.2))


def test_what_the_budget_leaves_is_to_be_done_at_once() -> None:
    made = planned(Policy(grace_s=1_000), 300, budget=2)

    assert (fired(made), made.next, made.look_at) == ([60, 120], tick(180), at(300))


@pytest.mark.parametrize("misfire", ["skip", "latest", "all"])
@pytest.mark.parametrize("budget", [1, 7, MANY])
def test_planning_until_now_fires_each_tick_once_and_in_order(misfire: Any, budget: int) -> None:
    policy = Policy(misfire=misfire, grace_s=100)
    following: Tick | None = tick(60)
    seen: list[Tick] = []

    for _ in range(100):
        assert following is not None
        made = plan(MINUTELY, policy, following, at(3_000), budget=budget)
        seen += made.fire
        following = made.next
        if made.look_at is not None and made.look_at > at(3_000) and not made.fire:
            break

    assert seen == sorted(set(seen), key=lambda each: each.at)
    assert seen[-1] == tick(3_000)


def test_a_recurrence_that_ends_leaves_nothing_to_look_for() -> None:
    assert plan(Once(NOON), Policy(), tick(0), at(1), budget=1) == Plan((tick(0),), 0, None, None)
    assert plan(Once(NOON), Policy(misfire="skip"), tick(0), at(61), budget=1) == Plan((), 1, None, None)
    assert plan(Once(NOON), Policy(misfire="latest"), tick(0), at(61), budget=1) == Plan((tick(0),), 0, None, None)


def test_a_tick_that_the_recurrence_has_no_more_still_fires() -> None:
    made = planned(Policy(grace_s=10), 200, next_s=185)

    assert (fired(made), made.next) == ([185], tick(240))


def test_ticks_of_one_instant_all_fire() -> None:
    cron = Cron("0,30 2 * * *", "Europe/Berlin")
    after_gap = datetime(2026, 3, 29, 1, tzinfo=UTC)
    first = cron.first(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert first is not None

    made = plan(cron, Policy(), first, after_gap, budget=MANY)

    assert [each.nominal for each in made.fire] == ["2026-03-29T02:00:00", "2026-03-29T02:30:00"]


def test_the_last_of_late_ticks_of_one_instant_is_the_last_by_name() -> None:
    cron = Cron("0,30 2 * * *", "Europe/Berlin")
    first = cron.first(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert first is not None

    made = plan(cron, Policy(), first, datetime(2026, 3, 29, 3, tzinfo=UTC), budget=MANY)

    assert ([each.nominal for each in made.fire], made.skipped) == (["2026-03-29T02:30:00"], 1)


def test_skipped_ticks_of_a_cron_job_are_counted_up_to_a_point() -> None:
    cron = Cron("* * * * *")
    first = cron.first(NOON)
    assert first is not None

    few = plan(cron, Policy(grace_s=0), first, at(301), budget=MANY)
    many = plan(cron, Policy(grace_s=0), first, at(30_001), budget=MANY)

    assert (few.skipped, few.skipped_more) == (4, False)
    assert (many.skipped, many.skipped_more) == (10, True)


@pytest.mark.parametrize("misfire", ["skip", "latest"])
def test_a_year_of_seconds_is_planned_in_no_time(misfire: Any) -> None:
    every = Every(1, NOON)
    year_s = 365 * 86_400
    started = time.perf_counter()

    for _ in range(100):
        made = plan(every, Policy(misfire=misfire), tick(1), at(year_s), budget=10)

    # Thirty million steps would take a minute each.
    assert (time.perf_counter() - started) / 100 < 0.005
    assert made.skipped == year_s - 61 - (misfire == "latest")
    assert fired(made)[0] == year_s - 60 - (misfire == "latest")


def test_jitter_is_the_same_for_the_same_name_and_tick() -> None:
    policy = Policy(jitter_s=30)

    drawn = {name: jitter(policy, name, tick(60)) for name in map(str, range(200))}

    assert drawn == {name: jitter(policy, name, tick(60)) for name in drawn}
    assert len(set(drawn.values())) == 200
    assert len({jitter(policy, "nightly", tick(second)) for second in range(200)}) == 200
    assert min(drawn.values()) >= timedelta(0)
    assert max(drawn.values()) < timedelta(seconds=30)
    assert max(drawn.values()) - min(drawn.values()) > timedelta(seconds=25)


def test_jitter_never_changes() -> None:
    # Two releases side by side must wait for the same moment.
    assert jitter(Policy(jitter_s=3_600), "nightly", tick(60)) == timedelta(seconds=2_216.475576)


def test_a_tick_with_jitter_waits_for_its_moment() -> None:
    policy = Policy(jitter_s=30)
    moment = at(60) + jitter(policy, "nightly", tick(60))

    early = plan(MINUTELY, policy, tick(60), moment - timedelta(microseconds=1), budget=MANY, name="nightly")
    due = plan(MINUTELY, policy, tick(60), moment, budget=MANY, name="nightly")

    assert early == Plan((), 0, tick(60), moment)
    assert due == Plan((tick(60),), 0, tick(120), at(120) + jitter(policy, "nightly", tick(120)))


def test_jitter_longer_than_the_grace_makes_no_tick_late() -> None:
    policy = Policy(misfire="skip", grace_s=1, jitter_s=3_000, skip_if_older_than_s=1)
    moment = at(60) + jitter(policy, "nightly", tick(60))

    made = plan(Every(3_600, at(60)), policy, tick(60), moment, budget=MANY, name="nightly")

    assert (made.fire, made.skipped) == ((tick(60),), 0)


def test_from_actual_the_next_is_a_whole_interval_after_this_one() -> None:
    policy = Policy(calculate_next_from="actual")

    made = planned(policy, 75)

    assert made == Plan((tick(60),), 0, tick(135), at(135))
    assert planned(policy, 59) == Plan((), 0, tick(60), at(60))


@pytest.mark.parametrize(
    ("policy", "fires", "skipped"),
    [
        ({}, [60], 0),
        ({"misfire": "all"}, [60], 0),
        ({"misfire": "skip"}, [], 1),
        ({"skip_if_older_than_s": 100}, [], 1),
    ],
)
def test_from_actual_there_is_one_late_tick_at_most(policy: dict[str, Any], fires: list[float], skipped: int) -> None:
    made = planned(Policy(calculate_next_from="actual", **policy), 1_000)

    assert (fired(made), made.skipped, made.next) == (fires, skipped, tick(1_060))


def test_from_actual_is_for_intervals_only() -> None:
    cron = Cron("* * * * *")
    first = cron.first(NOON)
    assert first is not None

    made = plan(cron, Policy(calculate_next_from="actual"), first, at(75), budget=MANY)

    assert made.next == cron.first(at(75))


def test_a_recurrence_that_cannot_be_is_the_callers_to_record() -> None:
    with pytest.raises(ConfigurationError, match="there is no time zone"):
        plan(Cron("0 0 * * *", "Mars/Olympus"), Policy(), tick(0), at(1), budget=1)


@given(
    misfire=st.sampled_from(["skip", "latest", "all"]),
    grace_s=st.floats(0, 500),
    old_s=st.none() | st.floats(0, 2_000),
    jitter_s=st.sampled_from([0, 5, 300]),
    every_s=st.integers(1, 500),
    now_s=st.floats(0, 5_000),
    budget=st.integers(1, 20),
)
def test_no_plan_fires_what_is_not_due_or_too_old_or_comes_later(
    misfire: Any, grace_s: float, old_s: float | None, jitter_s: float, every_s: int, now_s: float, budget: int
) -> None:
    every, now = Every(every_s, NOON), at(now_s)
    policy = Policy(misfire=misfire, grace_s=grace_s, skip_if_older_than_s=old_s, jitter_s=jitter_s)

    made = plan(every, policy, tick(every_s), now, budget=budget, name="x")

    assert len(made.fire) <= budget
    assert list(made.fire) == sorted(set(made.fire), key=lambda each: each.at)
    assert made.next is not None
    assert made.look_at is not None
    assert made.look_at >= now
    walked = every.between(at(every_s), made.next.at)
    assert walked == len(made.fire) + made.skipped
    for each in made.fire:
        assert each.at + jitter(policy, "x", each) <= now
        assert old_s is None or now - each.at <= timedelta(seconds=old_s + jitter_s)
        assert each.at < made.next.at
    late = [each for each in made.fire if now - each.at > timedelta(seconds=grace_s + jitter_s)]
    assert len(late) <= {"skip": 0, "latest": 1, "all": 10}[misfire]


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ({"misfire": "never"}, "misfire must be one of skip, latest, all, got 'never'"),
        ({"calculate_next_from": "now"}, "calculate_next_from must be one of nominal, actual, got 'now'"),
        ({"grace_s": -1}, "grace_s must be from 0 to 3155760000 seconds, got -1"),
        ({"jitter_s": float("nan")}, "jitter_s must be from 0"),
        ({"skip_if_older_than_s": float("inf")}, "skip_if_older_than_s must be from 0"),
        ({"catch_up_per_s": 0}, "catch_up_per_s must be from 1.15741e-05 to 100000, got 0"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        Policy(**policy).check()


def test_the_policies_in_use_make_sense() -> None:
    Policy().check()
    Policy(misfire="all", skip_if_older_than_s=300, jitter_s=10, calculate_next_from="actual").check()
