"""SIGTERM in a pool process: the end of the process, not a failure of the handler that runs.

The pool's own signal handler raises SystemExit wherever the process is just then, in a handler too, where it cannot be
told from a handler's own `sys.exit()`: which is a failed reply.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class ProcessEnds(BaseException):
    """The pool process was told to end. Nothing around user code catches it, so the turn leaves no trace."""


@contextmanager
def process_may_be_ended() -> Iterator[None]:
    """Turn what the pool's handler of SIGTERM raises into something that no turn takes for its own, and back.

    Raises:
        SystemExit: SIGTERM came; the pool process ends as its pool wants it to.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except SystemExit as exc:
            raise ProcessEnds(exc.code) from None

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except ProcessEnds as exc:
        raise SystemExit(exc.args[0]) from None
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, before)
