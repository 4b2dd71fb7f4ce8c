"""The rules by which a runner loads, asks for, takes, runs and gives up a singleton."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from entitycelery.sharding import succession
from entitycelery.sharding.succession import LOADS_WITHIN_S, Here, Part, Phase, Step, next_step
from entitycelery.singleton import LoopSpec, Seat, Timing

TIMING = Timing()
NOW_S = 1000.0
SPEC = LoopSpec("feed", "default", "shop", "feed", 1.0, 60.0, 5.0)
HERE = Here(worker="me", has_shard=True, serves=True, leaves=False)
SEAT = Seat("feed", 1, 7, "other", False, False, 1.25, None, None, None, False)


def here(**changes: Any) -> Here:
    return msgspec.structs.replace(HERE, **changes)


def seat(**changes: Any) -> Seat:
    return msgspec.structs.replace(SEAT, **changes)


def step(part: Part, at: Seat = SEAT, where: Here = HERE, now_s: float = NOW_S) -> Step | None:
    return next_step(part, at, where, now_s, TIMING)


def held(phase: Phase, **more: Any) -> Part:
    return Part(phase=phase, epoch=7, **more)


def free_for(since_s: float, phase: Phase = Phase.NONE, **more: Any) -> Part:
    return Part(phase=phase, free_since_s=NOW_S - since_s, **more)


MINE = seat(holder="me")
FREE = seat(is_free=True)


def test_the_times_add_up() -> None:
    assert TIMING.held_for_s == TIMING.confirm_every_s + TIMING.answer_within_s == 0.75
    assert TIMING.ends_after_s == 1.0
    assert TIMING.successor_waits_s == 1.25


# Candidates


def test_the_runner_with_the_shard_takes_a_free_lock_at_once() -> None:
    assert step(free_for(0.0), FREE) is Step.TAKE


def test_others_leave_a_free_lock_to_it_for_a_while() -> None:
    other = here(has_shard=False)

    assert step(free_for(TIMING.others_wait_s - 0.01), FREE, other) is None
    assert step(free_for(TIMING.others_wait_s), FREE, other) is Step.TAKE


def test_a_runner_from_which_it_was_moved_takes_it_when_nobody_else_does() -> None:
    avoided = seat(is_free=True, avoided="me")

    assert step(free_for(TIMING.avoided_waits_s - 0.01), avoided) is None
    assert step(free_for(TIMING.avoided_waits_s), avoided) is Step.TAKE


def test_where_an_operator_wants_it_goes_before_the_shard() -> None:
    assert step(free_for(0.0), seat(is_free=True, wanted="other")) is None
    assert step(free_for(0.0), seat(is_free=True, wanted="me"), here(has_shard=False)) is Step.TAKE


def test_whoever_is_to_have_it_loads_first_and_asks_then() -> None:
    assert step(Part()) is Step.LOAD
    assert step(Part(phase=Phase.LOADING)) is None
    assert step(Part(phase=Phase.READY)) is Step.ASK
    assert step(Part(phase=Phase.READY), seat(asked_by="me")) is None


def test_code_that_does_not_load_here_takes_nothing_until_it_is_tried_again() -> None:
    failed = succession.ended(succession.loading(Part(), NOW_S - 1), SPEC, NOW_S, wanted=False)

    assert failed.is_unfit
    assert step(failed) is None
    assert step(succession.seen(failed, FREE, NOW_S), FREE) is None
    assert step(failed, now_s=NOW_S + 1.0) is Step.LOAD


def test_a_process_that_waits_in_vain_is_ended() -> None:
    for phase in (Phase.LOADING, Phase.READY):
        assert step(Part(phase=phase), where=here(has_shard=False)) is Step.KILL
        assert step(Part(phase=phase), where=here(leaves=True)) is Step.KILL


@pytest.mark.parametrize("where", [here(serves=False), here(leaves=True)], ids=["absent", "leaving"])
def test_a_runner_that_does_not_serve_takes_nothing(where: Here) -> None:
    assert step(free_for(100.0), FREE, where) is None
    assert step(Part(), SEAT, where) is None


def test_how_long_a_lock_has_been_free_is_counted_from_the_first_look_at_it() -> None:
    first = succession.seen(Part(), FREE, NOW_S)
    later = succession.seen(first, FREE, NOW_S + 5)

    assert (first.free_since_s, later.free_since_s) == (NOW_S, NOW_S)
    assert succession.seen(later, SEAT, NOW_S + 6).free_since_s is None


# Holders


def test_a_lock_that_was_handed_over_may_be_used_at_once() -> None:
    part = succession.taken(Part(), seat(handed_over=True), 8, NOW_S)

    assert part.may_run_at_s == NOW_S


def test_a_lock_that_its_holder_has_lost_is_held_for_as_long_as_that_one_may_run() -> None:
    part = succession.taken(Part(phase=Phase.READY), seat(successor_waits_s=3.0), 8, NOW_S)

    assert step(part, seat(holder="me", epoch=8), now_s=NOW_S + 2.99) is None
    assert step(part, seat(holder="me", epoch=8), now_s=NOW_S + 3.0) is Step.RUN


def test_a_lock_that_nobody_had_meanwhile_may_be_used_again_at_once() -> None:
    before = succession.lost(held(Phase.NONE, may_run_at_s=NOW_S - 100))

    assert succession.taken(before, seat(epoch=7), 8, NOW_S).may_run_at_s <= NOW_S
    assert succession.taken(before, seat(epoch=8), 9, NOW_S).may_run_at_s > NOW_S


def test_a_wait_for_a_predecessor_is_not_shortened_by_losing_the_lock_meanwhile() -> None:
    waiting = succession.taken(Part(), SEAT, 8, NOW_S)

    again = succession.taken(succession.lost(waiting), seat(epoch=8), 9, NOW_S + 0.5)

    assert again.may_run_at_s == NOW_S + SEAT.successor_waits_s


def test_code_that_did_not_load_is_tried_again_by_whoever_takes_it() -> None:
    failed = succession.ended(succession.loading(Part(), NOW_S), SPEC, NOW_S, wanted=False)

    assert step(succession.taken(failed, SEAT, 8, NOW_S + 2), MINE, now_s=NOW_S + 2) is Step.LOAD


def test_a_holder_loads_and_runs() -> None:
    assert step(held(Phase.NONE), MINE) is Step.LOAD
    assert step(held(Phase.LOADING), MINE) is None
    assert step(held(Phase.READY), MINE) is Step.RUN
    assert step(held(Phase.RUNNING), MINE) is None


def test_a_holder_that_has_no_shard_keeps_it_until_somebody_asks() -> None:
    without = here(has_shard=False)

    assert step(held(Phase.RUNNING), MINE, without) is None
    assert step(held(Phase.RUNNING), seat(holder="me", asked_by="other"), without) is Step.STOP
    assert step(held(Phase.READY), seat(holder="me", asked_by="other"), without) is Step.KILL
    assert step(held(Phase.NONE), seat(holder="me", asked_by="other"), without) is Step.GIVE


@pytest.mark.parametrize("phase", [Phase.NONE, Phase.LOADING, Phase.READY, Phase.RUNNING])
def test_a_runner_that_leaves_hands_over_and_one_that_does_not_answer_goes_on(phase: Phase) -> None:
    ways_out = {Phase.NONE: Step.GIVE, Phase.RUNNING: Step.STOP}

    assert step(held(phase), MINE, here(leaves=True)) is ways_out.get(phase, Step.KILL)
    assert step(held(phase), MINE, here(leaves=False, serves=False)) is step(held(phase), MINE)


def test_what_was_moved_away_is_handed_over() -> None:
    assert step(held(Phase.RUNNING), seat(holder="me", avoided="me")) is Step.STOP


def test_nothing_is_handed_over_before_its_predecessor_must_have_ended() -> None:
    waiting = held(Phase.NONE, may_run_at_s=NOW_S + 1)

    assert step(waiting, MINE, here(leaves=True)) is None
    assert step(waiting, MINE, here(leaves=True), now_s=NOW_S + 1) is Step.GIVE


def test_code_that_does_not_load_is_handed_over_to_others() -> None:
    failed = succession.ended(succession.loading(held(Phase.NONE), NOW_S), SPEC, NOW_S, wanted=False)

    assert step(failed, MINE) is Step.GIVE
    assert succession.given(failed).retry_at_s == NOW_S + 1.0


def test_a_restart_stops_it_and_starts_it_again_without_a_pause() -> None:
    wanted = seat(holder="me", restart_wanted=True)

    assert step(held(Phase.RUNNING), wanted) is Step.STOP
    assert step(held(Phase.READY, retry_at_s=NOW_S + 60), MINE) is None
    assert step(held(Phase.READY, retry_at_s=NOW_S + 60), wanted) is Step.RUN
    stopped = succession.told_to_stop(held(Phase.RUNNING), NOW_S + 5)
    assert succession.ended(stopped, SPEC, NOW_S, wanted=True).retry_at_s <= NOW_S


# Its process


def test_what_does_not_stop_in_time_is_ended() -> None:
    stopping = succession.told_to_stop(held(Phase.RUNNING), NOW_S + 5)

    assert step(stopping, MINE, now_s=NOW_S + 4.9) is None
    assert step(stopping, MINE, now_s=NOW_S + 5) is Step.KILL
    assert step(succession.killed(stopping), MINE, now_s=NOW_S + 100) is None


def test_a_lock_that_is_lost_while_it_stops_leaves_less_time() -> None:
    stopping = succession.told_to_stop(held(Phase.RUNNING), NOW_S + 5)

    assert succession.told_to_stop(succession.lost(stopping), NOW_S + 1).kill_at_s == NOW_S + 1
    assert succession.told_to_stop(stopping, NOW_S + 9).kill_at_s == NOW_S + 5


def test_what_is_lost_is_stopped() -> None:
    assert step(succession.lost(held(Phase.RUNNING))) is Step.STOP


def test_what_does_not_load_in_time_is_ended() -> None:
    loading = succession.loading(held(Phase.NONE), NOW_S)

    assert step(loading, MINE, now_s=NOW_S + LOADS_WITHIN_S) is Step.KILL
    assert step(succession.ready(loading), MINE, now_s=NOW_S + LOADS_WITHIN_S) is Step.RUN


def test_pauses_double_with_each_failure_up_to_the_longest() -> None:
    part, pauses = held(Phase.NONE), []
    for _ in range(8):
        running = succession.begun(succession.loading(part, NOW_S), 8, NOW_S)
        part = succession.ended(running, SPEC, NOW_S, wanted=False)
        pauses.append(part.retry_at_s - NOW_S)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not part.is_unfit


def test_the_code_is_loaded_during_the_pause() -> None:
    assert step(held(Phase.NONE, retry_at_s=NOW_S + 1), MINE) is Step.LOAD
    assert step(held(Phase.READY, retry_at_s=NOW_S + 1), MINE) is None
    assert step(held(Phase.READY, retry_at_s=NOW_S + 1), MINE, now_s=NOW_S + 1) is Step.RUN


def test_what_ran_for_longer_than_the_longest_pause_has_not_failed_in_a_row() -> None:
    running = succession.begun(held(Phase.READY, failures=6), 8, NOW_S - 61)

    assert succession.ended(running, SPEC, NOW_S, wanted=False).retry_at_s == NOW_S + 1


def test_a_pause_does_not_follow_it_to_another_runner_and_back() -> None:
    running = succession.begun(held(Phase.READY, failures=6), 8, NOW_S)
    paused = succession.ended(running, SPEC, NOW_S, wanted=False)

    assert succession.given(paused).retry_at_s == 0.0
