"""What follows from a verdict: doubt is for life."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import product

import pytest

from entitycelery.health.verdict import Condemned, everybody, unhealthy
from entitycelery.placement import Placement, Runner
from tests.health.records import NOON, runner

A, B, C = runner("a"), runner("b"), runner("c")


def test_a_suspect_that_is_not_healthy_is_evicted_and_a_healthy_one_is_not() -> None:
    assert unhealthy([A, B, C], suspects=[B, C], healthy={"i-c"}) == [B]


def test_whoever_is_no_suspect_is_not_evicted() -> None:
    assert unhealthy([A, B, C], suspects=[], healthy=set()) == []


@pytest.mark.parametrize("locked", [False, None])
def test_a_runner_whose_lock_is_held_is_never_evicted(locked: bool | None) -> None:
    held, free = runner("b", locked=True), runner("c", locked=locked)

    assert unhealthy([A, held, free], suspects=[held, free], healthy=set()) == [free]


def test_the_last_runner_is_never_evicted() -> None:
    assert unhealthy([A], suspects=[A], healthy=set()) == []


def test_where_all_are_unhealthy_the_one_seen_last_stays() -> None:
    late = runner("b", seen_at=NOON + timedelta(seconds=1))

    assert unhealthy([A, late, C], suspects=[A, late, C], healthy=set()) == [A, C]


@pytest.mark.parametrize("suspected", list(product([True, False], repeat=3)), ids=str)
@pytest.mark.parametrize("locked", list(product([True, False, None], repeat=3)), ids=str)
def test_somebody_always_remains(suspected: tuple[bool, ...], locked: tuple[bool | None, ...]) -> None:
    all_runners = [runner(name, locked=held) for name, held in zip("abc", locked, strict=True)]
    suspects = [one for one, is_suspect in zip(all_runners, suspected, strict=True) if is_suspect]

    evicted = unhealthy(all_runners, suspects, healthy=set())

    assert everybody(evicted) < everybody(all_runners)
    assert everybody(evicted) <= everybody(suspects)
    assert not any(one.locked for one in evicted)


class Nobody:
    """Takes all that it is asked about for dead."""

    def __init__(self) -> None:
        self.asked: list[Sequence[Runner]] = []

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        self.asked.append(runners)
        return set()


def test_only_others_that_have_been_silent_and_hold_no_lock_are_asked_about() -> None:
    me, seen, locked = runner("me"), runner("seen", unseen_s=2.9), runner("locked", locked=True)
    health = Nobody()

    found = Condemned(health, suspect_after_s=3.0)(Placement((me, seen, locked, A), ()), me)

    assert found == [A]
    assert health.asked == [[A]]
