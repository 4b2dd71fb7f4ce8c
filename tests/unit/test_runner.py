"""The runner process ends when it is told to, wherever it is just then, and does at once what cannot wait."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

from entitycelery.worker.duties import Duty
from entitycelery.worker.runner import _run
from tests.waiting import eventually

TOLD_IN_A_DESTRUCTOR = """
import os, select, signal
from entitycelery.worker.runner import _readable_on_sigterm

class Told:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

stop = _readable_on_sigterm()
assert not select.select([stop], [], [], 0)[0]
told = Told()
del told
assert select.select([stop], [], [], 30)[0]
"""


def test_a_signal_in_the_middle_of_a_destructor_is_not_lost() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TOLD_IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stderr) == (0, "")


class Interrupted(Duty):
    """Has nothing to do for a long time, unless it is interrupted."""

    def __init__(self) -> None:
        super().__init__(600.0)
        self.interrupt, self.call = os.pipe()
        self.ticks = 0

    def _interrupts(self) -> list[int]:
        return [self.interrupt]

    def tick(self) -> float:
        if self.ticks:
            os.read(self.interrupt, 1)
        self.ticks += 1
        return self._every_s


def test_a_duty_is_done_at_once_when_it_is_interrupted_and_the_others_sleep_on() -> None:
    called, other = Interrupted(), Interrupted()
    stop, end = os.pipe()
    keeper = SimpleNamespace(has_left=False)
    loop = threading.Thread(target=_run, args=([called, other], keeper, os.getppid(), [stop], None), daemon=True)
    loop.start()
    eventually(lambda: (called.ticks, other.ticks) == (1, 1))

    os.write(called.call, b"!")
    eventually(lambda: called.ticks == 2)
    os.write(called.call, b"!")
    eventually(lambda: called.ticks == 3)
    os.write(end, b"!")
    loop.join(30)

    assert not loop.is_alive()
    assert (called.ticks, other.ticks) == (3, 1)
