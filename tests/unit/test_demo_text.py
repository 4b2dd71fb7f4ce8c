"""What the demo shows to people, on a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
from io import StringIO

import pytest

from entitycelery.cli.demo import Stage, progress_line, sentence, table
from entitycelery.cli.demo_check import Verdict
from entitycelery.cli.demo_run import Killed, Outcome, Progress

RIGHT = Verdict(
    sent=5_000,
    applied=5_000,
    lost=0,
    doubled=0,
    strange=0,
    out_of_order=0,
    unbalanced=0,
    money_before=2_000_000,
    money_after=2_000_000,
    missing=(),
)
WRONG = dataclasses.replace(RIGHT, applied=4_990, lost=8, doubled=2, out_of_order=3, missing=tuple(range(100, 120)))


def outcome(verdict: Verdict) -> Outcome:
    killed = Killed("worker-1", 1003, 4, 4_076)
    return Outcome(verdict, killed, 1234.5, 21.04, 53.42, "sqlite:////tmp/store.db", "folder:///tmp/broker", "")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("verdict", [RIGHT, WRONG])
def test_the_table_is_aligned_and_fits(verdict: Verdict) -> None:
    lines = table(outcome(verdict), 15.25)

    figures = {line.index(figure) + len(figure) for line in lines for figure in [line[15:].split()[0]]}
    assert len(figures) == 1
    assert max(map(len, lines)) < 80


def test_the_table_names_every_promise() -> None:
    shown = {line[2:16].strip(): line[16:].split()[0] for line in table(outcome(WRONG), 15.25)}

    assert shown["sent"] == "5,000"
    assert shown["applied"] == "4,990"
    assert (shown["lost"], shown["doubled"], shown["strange"]) == ("8", "2", "0")
    assert (shown["money before"], shown["money after"]) == ("2,000,000", "2,000,000")
    assert (shown["order kept"], shown["killed"]) == ("no", "4")
    assert (shown["ask p50"], shown["ask p99"], shown["took"]) == ("21.0", "53.4", "15.2")


def test_a_verdict_says_in_words_what_is_wrong() -> None:
    assert sentence(RIGHT) == "Every transfer was applied exactly once."
    assert sentence(WRONG) == (
        "FAILED. lost: 8, doubled: 2, out of order: 3 (lost: 100, 101, 102, 103, 104, 105, 106, 107, 108, 109)"
    )


def test_money_that_is_gone_is_said() -> None:
    poorer = dataclasses.replace(RIGHT, money_after=1_999_990, unbalanced=1)

    assert sentence(poorer) == "FAILED. balances that do not add up: 1, money gained or lost: -10"


def test_the_progress_fits_even_a_large_load() -> None:
    assert len(progress_line(Progress(999_999, 999_999, 999_999, 999_999, 33.3))) < 80


def test_a_terminal_has_one_live_line() -> None:
    terminal = Terminal()
    stage = Stage(terminal)
    for done in (1, 2):
        stage.show(Progress(10, sent=done))
    stage.say("done")

    assert terminal.getvalue().count("\r\x1b[K") == 2
    assert terminal.getvalue().endswith("messages/s\ndone\n")


def test_elsewhere_a_line_a_second_is_enough() -> None:
    file = StringIO()
    stage = Stage(file)
    for tenth in range(25):
        stage.show(Progress(10, took_s=tenth / 10))
    stage.say("done")

    assert len(file.getvalue().splitlines()) == 4
    assert "\r" not in file.getvalue()
