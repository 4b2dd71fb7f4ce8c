"""The runner process ends when it is told to, wherever it is just then."""

from __future__ import annotations

import subprocess
import sys

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
