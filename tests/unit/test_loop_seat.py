"""One loop at one runner: what it says to its process, and when."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from entitycelery.sharding.succession import Here, Phase
from entitycelery.singleton import Seat
from entitycelery.worker.loop_line import Ended, Go, Loaded, Stop, Until
from entitycelery.worker.loop_seat import LoopSeat, Moment
from tests.unit.singleton_world import SETTINGS, SPEC, TIMING

HERE = Here(worker="me", has_shard=True, serves=True, leaves=False)
FREE = Seat(SPEC.name, 1, 0, None, True, True, TIMING.successor_waits_s, None, None, None, False)


class Process:
    """Says and does what the test has it do."""

    pid = 4711
    has_closed = False

    def __init__(self) -> None:
        self.heard: list[Go | Until | Stop] = []
        self.said: list[Loaded | Ended] = []
        self.exit_code: int | None = None
        self.is_killed = False

    def hear(self) -> list[Loaded | Ended]:
        said, self.said = self.said, []
        return said

    def say(self, message: Go | Until | Stop) -> None:
        self.heard.append(message)

    def kill(self) -> None:
        self.is_killed = True

    def close(self) -> None:
        return


class Runner:
    """One seat, with the answers of a store that the test writes down."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.row = FREE
        self.processes: list[Process] = []
        self.ends: list[tuple[int, str | None]] = []
        self.is_broken = False
        self.seat = LoopSeat(SPEC, self._start, SETTINGS, lambda: self.now_s)

    def _start(self, _spec: object) -> Any:
        if self.is_broken:
            raise FileNotFoundError("no such folder")
        self.processes.append(Process())
        return self.processes[-1]

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def look(self, *, asked_s: float | None = None) -> bool:
        """One look, whose answer is read now."""
        asked = self.now_s if asked_s is None else asked_s
        seen, moment = self.row, Moment(HERE, asked)
        self.seat.confirm(seen, moment)
        return self.seat.go_on(self, seen, moment)

    def settle(self) -> None:
        """Look until there is nothing to do."""
        while self.look():
            pass

    def runs(self) -> Process:
        """Take it, load it and run it."""
        self.settle()
        self.process.said.append(Loaded())
        self.settle()
        assert self.seat.part.phase is Phase.RUNNING
        return self.process

    # The session

    def take(self, _name: str) -> tuple[Seat, int]:
        before = self.row
        self.row = msgspec.structs.replace(
            before, holder="me", epoch=before.epoch + 1, is_free=False, handed_over=False
        )
        return before, self.row.epoch

    def run(self, _name: str, epoch: int, *, pid: int, again: bool) -> int | None:
        if epoch != self.row.epoch:
            return None
        self.row = msgspec.structs.replace(self.row, epoch=epoch + 1, restart_wanted=False)
        return self.row.epoch

    def end(self, _name: str, epoch: int, failure: str | None) -> None:
        self.ends.append((epoch, failure))

    def give(self, _seat: Seat, _epoch: int) -> None:
        self.row = msgspec.structs.replace(self.row, holder=None, is_free=True, handed_over=True)


@pytest.fixture
def runner() -> Runner:
    return Runner()


def test_a_process_is_told_to_go_once_it_has_loaded(runner: Runner) -> None:
    process = runner.runs()

    assert process.heard[0] == Go(2, runner.now_s + TIMING.held_for_s, TIMING.confirm_every_s)


def test_a_process_may_run_for_as_long_as_the_question_says_and_not_the_answer(runner: Runner) -> None:
    process = runner.runs()
    asked_s = runner.now_s + 0.25
    runner.now_s += 0.6

    runner.look(asked_s=asked_s)

    assert process.heard[-1] == Until(asked_s + TIMING.held_for_s)


def test_what_was_not_confirmed_in_time_is_lost_though_the_answer_came(runner: Runner) -> None:
    process = runner.runs()
    began_s = runner.now_s
    runner.now_s += TIMING.held_for_s + 0.01

    runner.look(asked_s=runner.now_s - 0.2)

    assert process.heard[-1] == Stop()
    assert runner.seat.part.epoch is None
    assert runner.seat.part.kill_at_s == began_s + TIMING.ends_after_s


@pytest.mark.parametrize(
    "change",
    [{"holder": "other", "epoch": 9}, {"epoch": 9}, {"is_free": True}],
    ids=["other", "again", "free"],
)
def test_a_row_that_is_not_ours_any_more_stops_the_process(runner: Runner, change: dict[str, Any]) -> None:
    process = runner.runs()
    runner.row = msgspec.structs.replace(runner.row, **change)
    runner.now_s += 0.25

    runner.look()

    assert process.heard[-1] == Stop()
    assert runner.seat.part.epoch is None


def test_a_process_that_was_lost_is_ended_when_its_time_is_over(runner: Runner) -> None:
    process = runner.runs()

    runner.seat.lose("as the test wants it")

    runner.now_s += TIMING.ends_after_s - 0.01
    assert runner.seat.is_ending()
    assert not process.is_killed
    runner.now_s += 0.01
    assert runner.seat.is_ending()
    assert process.is_killed
    process.exit_code = -9
    assert not runner.seat.is_ending()
    assert runner.seat.is_empty


def test_confirmations_go_on_while_it_is_given_time_to_stop(runner: Runner) -> None:
    process = runner.runs()
    runner.row = msgspec.structs.replace(runner.row, restart_wanted=True)

    runner.settle()
    assert Stop() in process.heard
    runner.now_s += 0.5
    runner.look()

    assert process.heard[-1] == Until(runner.now_s + TIMING.held_for_s)
    assert runner.seat.part.kill_at_s == runner.now_s - 0.5 + SETTINGS.singleton_stop_timeout_s


@pytest.mark.parametrize(
    ("said", "code", "failure"),
    [
        (Ended("ValueError: 5"), 1, "ValueError: 5"),
        (Ended(None), 0, None),
        (None, -9, "its process ended with SIGKILL"),
        (None, -40, "its process ended with signal 40"),
        (None, 3, "its process ended with exit code 3"),
    ],
    ids=["raised", "returned", "killed", "signal", "exit"],
)
def test_what_ends_by_itself_is_written_down_and_started_again(
    runner: Runner, said: Ended | None, code: int, failure: str | None
) -> None:
    process = runner.runs()
    if said is not None:
        process.said.append(said)
    process.exit_code = code

    runner.settle()

    assert runner.ends == [(2, failure)]
    assert runner.process is not process
    runner.process.said.append(Loaded())
    runner.settle()
    assert runner.process.heard == []
    runner.now_s += SPEC.restart_backoff_s
    runner.settle()
    assert isinstance(runner.process.heard[0], Go)


def test_a_process_that_said_its_end_and_does_not_go_is_ended(runner: Runner) -> None:
    process = runner.runs()
    process.said.append(Ended("ValueError: 5"))
    runner.settle()
    assert not process.is_killed

    for _ in range(int(SETTINGS.singleton_stop_timeout_s / 0.25) + 1):
        runner.now_s += 0.25
        runner.settle()

    assert process.is_killed


def test_what_cannot_be_started_has_failed_and_is_given_to_others(runner: Runner) -> None:
    runner.is_broken = True

    runner.look()
    assert runner.seat.part.epoch == 1
    runner.look()
    runner.look()

    assert runner.row.holder is None
    assert runner.seat.part.is_unfit
    assert runner.seat.is_empty
