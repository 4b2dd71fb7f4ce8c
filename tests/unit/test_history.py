"""Each check of the history checker catches what it is for, and a good history passes all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.history import (
    CHECKS,
    Operation,
    Recorder,
    answers_are_positions,
    atomic_with_its_sends,
    exactly_once,
    in_senders_order,
    linearizable,
    read_history,
    violations,
)


def asked(entry: str, answer: int | None, invoked_s: float, returned_s: float, **fields: Any) -> Operation:
    base = Operation(
        entry=entry, client=entry[0], kind="ask", entity="A", invoked_s=invoked_s, returned_s=returned_s,
        outcome="ok", answer=answer,
    )  # fmt: skip
    return replace(base, **fields)


def sent(entry: str, invoked_s: float, **fields: Any) -> Operation:
    base = asked(entry, None, invoked_s, invoked_s + 0.1, kind="send")
    return replace(base, **fields)


def read(entry: str, length: int, invoked_s: float, returned_s: float) -> Operation:
    return asked(entry, length, invoked_s, returned_s, kind="read")


GOOD = [
    asked("x1", 0, 1.0, 2.0),
    asked("y1", 2, 1.5, 4.0),
    sent("x2", 2.5),
    read("z1", 2, 2.6, 3.5),
    asked("x3", 3, 3.0, 5.0, passed_to="B"),
    # Its answer got lost, its turn did not.
    asked("y2", None, 4.5, 6.0, outcome="unknown"),
    sent("y3", 5.0, outcome="unknown"),
    sent("z2", 5.5, outcome="failed"),
]
GOOD_LISTS = {"A": ["x1", "x2", "y1", "x3", "y2"], "B": ["x3>"]}


def test_a_history_that_some_order_of_turns_explains_passes_every_check() -> None:
    assert violations(GOOD, GOOD_LISTS) == []


@pytest.mark.parametrize("order", [["x1", "y1"], ["y1", "x1"]])
def test_operations_that_overlap_may_stand_in_either_order(order: list[str]) -> None:
    history = [asked("x1", order.index("x1"), 1, 3), asked("y1", order.index("y1"), 2, 4)]

    assert violations(history, {"A": order}) == []


@pytest.mark.parametrize(
    ("history", "lists", "sentence"),
    [
        ([sent("x1", 1)], {"A": []}, "A has x1 (ok) 0 times"),
        ([sent("x1", 1)], {}, "A has x1 (ok) 0 times"),
        ([sent("x1", 1)], {"A": ["x1", "x1"]}, "A has x1 (ok) 2 times"),
        ([sent("x1", 1, outcome="unknown")], {"A": ["x1", "x1"]}, "A has x1 (unknown) 2 times"),
        ([sent("x1", 1, outcome="failed")], {"A": ["x1"]}, "A has x1 (failed) 1 times"),
        ([], {"A": ["x1"]}, "A has x1, which nobody sent there"),
        ([sent("x1", 1)], {"A": ["x1"], "B": ["x1"]}, "B has x1, which nobody sent there"),
        ([sent("x1", 1)], {"A": ["x1", "x1>"]}, "A has x1>, which nobody sent there"),
    ],
    ids=["lost", "lost entity", "doubled", "doubled unknown", "refused", "invented", "elsewhere", "invented send"],
)
def test_exactly_once_catches(history: list[Operation], lists: dict[str, list[str]], sentence: str) -> None:
    assert exactly_once(history, lists) == [sentence]


@pytest.mark.parametrize("entries", [["x0", "x1"], []], ids=["elsewhere", "nowhere"])
def test_answers_are_positions_catches_an_answer_that_another_turn_gave(entries: list[str]) -> None:
    [sentence] = answers_are_positions([asked("x1", 0, 1, 2)], {"A": entries})

    assert "answered 0 to x1" in sentence


@pytest.mark.parametrize(
    ("history", "entries"),
    [
        ([asked("x1", 1, 1, 2), asked("y1", 0, 3, 4)], ["y1", "x1"]),
        ([asked("x1", 1, 1, 2), sent("y1", 3)], ["y1", "x1"]),
        ([asked("x1", 1, 1, 2), asked("y1", None, 3, 4, outcome="unknown")], ["y1", "x1"]),
        ([asked("x1", 2, 1, 2), asked("z1", 1, 1, 9), asked("y1", 0, 3, 4)], ["y1", "z1", "x1"]),
        ([asked("x1", 0, 1, 2), read("r1", 0, 3, 4)], ["x1"]),
        ([read("r1", 1, 1, 2), asked("x1", 0, 3, 4)], ["x1"]),
        ([read("r1", 1, 1, 2), read("r2", 0, 3, 4)], ["x1"]),
    ],
    ids=["swapped", "send too early", "unknown too early", "apart", "stale read", "read ahead", "read backwards"],
)
def test_linearizable_catches_what_contradicts_real_time(history: list[Operation], entries: list[str]) -> None:
    assert linearizable(history, {"A": entries})


def test_reads_between_the_same_two_entries_are_in_no_order() -> None:
    reads = [read("r2", 1, 3, 4), read("r1", 1, 1, 2)]

    assert linearizable(reads, {"A": ["x1"]}) == []


def test_in_senders_order_catches_sends_that_overtook_each_other() -> None:
    history = [sent("x1", 1), sent("y1", 1), sent("x2", 2)]

    assert in_senders_order(history, {"A": ["x2", "y1", "x1"]}) == ["A has x2 before x1, which x sent earlier"]
    assert in_senders_order(history, {"A": ["y1", "x1", "x2"]}) == []


def test_in_senders_order_says_nothing_of_sends_that_never_returned() -> None:
    assert in_senders_order([sent("x1", 1, outcome="unknown"), sent("x2", 2)], {"A": ["x2", "x1"]}) == []


@pytest.mark.parametrize(
    ("entries", "passed"),
    [(["x1"], []), ([], ["x1>"]), (["x1"], ["x1>", "x1>"])],
    ids=["turn without its send", "send without its turn", "doubled send"],
)
def test_atomic_catches(entries: list[str], passed: list[str]) -> None:
    history = [sent("x1", 1, passed_to="B", outcome="unknown")]

    assert atomic_with_its_sends(history, {"A": entries, "B": passed})


def test_atomic_catches_outgoing_sends_that_overtook_each_other() -> None:
    history = [sent("x1", 1, passed_to="B"), sent("y1", 1, passed_to="B")]

    assert atomic_with_its_sends(history, {"A": ["x1", "y1"], "B": ["y1>", "x1>"]})
    assert not atomic_with_its_sends(history, {"A": ["x1", "y1"], "B": ["x1>", "y1>"]})


def test_violations_asks_every_check() -> None:
    history = [
        asked("x1", 7, 1, 2, passed_to="B"),
        asked("x2", 0, 3, 4),
        sent("x3", 5),
    ]

    found = violations(history, {"A": ["x2", "x1"]})

    assert {sentence.partition(":")[0] for sentence in found} == {check.__name__ for check in CHECKS}


def test_what_a_client_wrote_down_is_read_back_up_to_the_line_it_died_in(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "x", "x")
    recorder.invoke("x1", "ask", "A", "B")
    recorder.answer("x1", "ok", answer=3, message_id="an id")
    recorder.invoke("x2", "send", "A")
    with (tmp_path / "x").open("a") as file:
        file.write('{"entry": "x2", "outc')

    [first, second] = read_history([tmp_path / "x"])

    assert (first.outcome, first.answer, first.passed_to, first.message_id) == ("ok", 3, "B", "an id")
    assert first.invoked_s <= first.returned_s <= second.invoked_s
    assert (second.outcome, second.effect_by_s) == ("unknown", float("inf"))
