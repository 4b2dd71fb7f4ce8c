"""Read by Python itself at the start of a process under libfaketime: a sleep that works there.

Since Python 3.11 `time.sleep` waits until a moment of the monotonic clock. libfaketime 0.9.10, told to leave that clock
alone, refuses such waits.
"""

from __future__ import annotations

import select
import time


def sleep(seconds: float) -> None:
    """Wait for so long."""
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = sleep
