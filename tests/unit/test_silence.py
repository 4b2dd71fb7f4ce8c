"""For how long others are silent, by our own clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from entitycelery.placement import Placement, Runner
from entitycelery.silence import Said, Silences
from tests.health.records import runner

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR_S = 3600.0


def said(at: object, age_s: float) -> dict[str, Said]:
    return {"one": Said(at, age_s)}


def test_at_the_first_look_there_is_only_the_databases_clock() -> None:
    assert Silences().heard(said(1.0, 7.0), looked_s=100.0) == {"one": 7.0}


def test_whoever_says_the_same_as_before_is_silent_since() -> None:
    silences = Silences()
    silences.heard(said(1.0, 2.0), looked_s=100.0)

    for age_s in (7.0, 7.0 + HOUR_S, 7.0 - HOUR_S):
        assert silences.heard(said(1.0, age_s), looked_s=105.0) == {"one": 7.0}


def test_whoever_says_something_new_has_said_it_since_the_look_before() -> None:
    for age_s, silent_s in ((0.5, 0.5), (HOUR_S, 1.0), (-HOUR_S, 0.0)):
        silences = Silences()
        silences.heard(said(1.0, 0.0), looked_s=100.0)

        assert silences.heard(said(2.0, age_s), looked_s=101.0) == {"one": silent_s}


def test_whoever_was_not_there_at_the_look_before_came_since() -> None:
    silences = Silences()
    silences.heard({}, looked_s=100.0)

    assert silences.heard(said(1.0, HOUR_S), looked_s=102.0) == {"one": 2.0}


def test_whoever_has_gone_is_forgotten() -> None:
    silences = Silences()
    silences.heard(said(1.0, 0.0), looked_s=100.0)
    silences.heard({}, looked_s=150.0)

    assert silences.heard(said(1.0, HOUR_S), looked_s=151.0) == {"one": 1.0}


def test_runners_are_seen_with_their_silences() -> None:
    def look(one: Runner) -> Placement:
        return Placement((one,), ())

    silences = Silences()
    silences.placement(look(runner("one", seen_at=NOON, unseen_s=0.5)), 100.0)

    [same] = silences.placement(look(runner("one", seen_at=NOON, unseen_s=HOUR_S)), 103.0).runners
    [new] = silences.placement(look(runner("one", seen_at=NOON - timedelta(hours=1), unseen_s=0.0)), 104.0).runners

    assert (same.unseen_s, new.unseen_s) == (3.5, 0.0)
