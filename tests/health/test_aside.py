"""A check in a thread: whoever asks never waits, and what was found counts for the same silence only."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta

import msgspec
import pytest

from entitycelery.health.aside import Aside
from entitycelery.health.verdict import everybody
from entitycelery.placement import Runner
from tests.health.records import NOON, runner
from tests.waiting import eventually

A, B = runner("a"), runner("b")


class Gated:
    """Condemns B, once it may answer."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked: list[set[str]] = []

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        self.asked.append(everybody(runners))
        self.may_answer.wait(60)
        return everybody(runners) - {"i-b"}


@pytest.fixture
def gated() -> Iterator[Gated]:
    health = Gated()
    yield health
    health.may_answer.set()


def answered(aside: Aside, gated: Gated) -> None:
    """Let the look that is going on come to its end."""
    gated.may_answer.set()
    eventually(lambda: not any(thread.name == "entitycelery.health" for thread in threading.enumerate()))


def test_while_the_look_goes_on_everybody_lives_and_there_is_one_look_only(gated: Gated) -> None:
    aside = Aside(gated)

    assert [aside.healthy([A, B]) for _ in range(3)] == 3 * [{"i-a", "i-b"}]
    eventually(lambda: gated.asked)
    assert gated.asked == [{"i-a", "i-b"}]


def test_the_question_after_the_look_is_answered_by_it(gated: Gated) -> None:
    aside = Aside(gated)
    aside.healthy([A, B])
    answered(aside, gated)

    assert aside.healthy([A, B]) == {"i-a"}


def test_what_was_found_counts_once(gated: Gated) -> None:
    aside = Aside(gated)
    aside.healthy([A, B])
    answered(aside, gated)
    gated.may_answer.clear()
    aside.healthy([A, B])

    assert aside.healthy([A, B]) == {"i-a", "i-b"}


def test_what_was_found_counts_for_the_next_question_only(gated: Gated) -> None:
    aside = Aside(gated)
    aside.healthy([A, B])
    answered(aside, gated)
    aside.healthy([])

    assert aside.healthy([A, B]) == {"i-a", "i-b"}


def test_a_runner_seen_since_the_look_began_is_not_condemned_by_it(gated: Gated) -> None:
    aside = Aside(gated)
    aside.healthy([A, B])
    answered(aside, gated)

    seen = msgspec.structs.replace(B, seen_at=NOON + timedelta(seconds=1))

    assert aside.healthy([A, seen]) == {"i-a", "i-b"}


def test_a_runner_that_was_not_asked_about_lives(gated: Gated) -> None:
    aside = Aside(gated)
    aside.healthy([A])
    answered(aside, gated)

    assert aside.healthy([A, B]) == {"i-a", "i-b"}


def test_nobody_is_looked_for_where_nobody_is_asked_about(gated: Gated) -> None:
    assert Aside(gated).healthy([]) == set()
    assert gated.asked == []


def test_a_look_that_fails_condemns_nobody(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def fail(_runners: Sequence[Runner]) -> set[str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gated, "healthy", fail)
    aside = Aside(gated)
    aside.healthy([A, B])
    eventually(lambda: said)
    answered(aside, gated)

    assert aside.healthy([A, B]) == {"i-a", "i-b"}
