"""The process of a loop watches itself: it stops, and ends, when nobody says in time that it may go on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest

from entitycelery.worker.link import now_s
from entitycelery.worker.loop_line import Go, Stop, Until
from tests.waiting import eventually

GRACE_S = 0.3
# A process that did not end by itself would live for a minute.
SOON_S = 10.0
# name -> what the loop does once it may run.
LOOPS = {
    "obedient": "line.stop.wait(60)",
    "deaf": "time.sleep(60)",
    # Holds Python's lock for about a second: nobody else in the process runs.
    "busy": "sys.setswitchinterval(5); spin(1.5)",
}
PROGRAM = """
import socket, sys, time
from entitycelery.worker.loop_line import LoopEnd

def spin(for_s):
    ends = time.monotonic() + for_s
    while time.monotonic() < ends:
        pass

line = LoopEnd(socket.socket(fileno=int(sys.argv[1])))
print("READY", flush=True)
go = line.await_go()
print("GO" if go else "NEVER", line.stop.is_set(), flush=True)
if go:
    {loop}
    print("STOPPED", line.stop.is_set(), flush=True)
"""


class Process:
    """A process with the loop's end of a line."""

    def __init__(self, loop: str) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(loop=LOOPS[loop]), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )
        # How long it takes to start is no part of any time that it is given.
        assert self.line() == "READY"

    @property
    def code(self) -> int | None:
        return self._process.poll()

    @property
    def has_ended(self) -> bool:
        return self.code is not None

    def say(self, message: Go | Until | Stop) -> None:
        with suppress(BrokenPipeError):
            self.socket.send(msgspec.json.encode(message) + b"\n")

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go(self, for_s: float) -> None:
        self._went_s = time.monotonic()
        self.say(Go(7, now_s() + for_s, GRACE_S))
        assert self.line() == "GO False"

    def ends_after_s(self) -> float:
        """How long after it was told to go it has ended."""
        self._process.wait(30)
        return time.monotonic() - self._went_s

    def kill(self) -> None:
        self.socket.close()
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def process(loop: str) -> Iterator[Process]:
    made = Process(loop)
    try:
        yield made
    finally:
        made.kill()


@pytest.mark.parametrize("loop", ["obedient", "deaf"])
def test_silence_stops_the_loop_and_ends_its_process_soon_after(loop: str) -> None:
    with process(loop) as one:
        one.go(0.5)

        took_s = one.ends_after_s()

        if loop == "obedient":
            assert (one.line(), one.code) == ("STOPPED True", 0)
            assert took_s < SOON_S
        else:
            assert one.code == -9
            assert 0.5 + GRACE_S <= took_s < SOON_S


def test_it_goes_on_for_as_long_as_it_is_told_to() -> None:
    with process("deaf") as one:
        one.go(1.5)
        told_until_s = time.monotonic() + 3.0

        def is_told_no_more() -> bool:
            one.say(Until(now_s() + 1.5))
            assert not one.has_ended
            return time.monotonic() > told_until_s

        eventually(is_told_no_more, every_s=0.1)

        assert one.ends_after_s() < SOON_S


@pytest.mark.parametrize("loop", ["obedient", "deaf"])
def test_the_end_of_the_runner_ends_it_too(loop: str) -> None:
    with process(loop) as one:
        one.go(60.0)

        one.socket.close()

        assert one.ends_after_s() < SOON_S


def test_it_is_told_to_stop_and_is_given_time_by_whoever_tells_it() -> None:
    with process("obedient") as one:
        one.go(60.0)

        one.say(Stop())

        assert one.line() == "STOPPED True"
        one.ends_after_s()
        assert one.code == 0


def test_what_may_not_run_any_more_when_it_hears_so_does_not() -> None:
    with process("obedient") as one:
        one.say(Go(7, now_s() - 0.01, SOON_S))

        assert one.line() == "GO True"


def test_what_is_told_to_stop_before_it_may_run_never_does() -> None:
    with process("obedient") as one:
        one.say(Stop())

        assert one.line() == "NEVER True"


def test_a_loop_that_keeps_the_interpreter_busy_does_not_die_of_it() -> None:
    with process("busy") as one:
        one.go(0.6)

        def has_ended() -> bool:
            one.say(Until(now_s() + 0.6))
            return one.has_ended

        eventually(has_ended, every_s=0.1)

        assert (one.line(), one.code) == ("STOPPED False", 0)
