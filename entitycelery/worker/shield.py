"""Parts of the worker's main thread in whose middle no handler of a signal runs.

Celery's handlers of a cold shutdown stop the pool, and wait for its threads, wherever the main thread is just then.
Where it holds a lock that these threads, or stopping, need, it would wait for itself, for ever: so it does in the
middle of `ThreadPoolExecutor.submit` (python/cpython#121649).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

ENDS_WORKER = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class Shield:
    """A context manager: a signal that comes in the middle is handled at its end, where no outer one is open.

    Only on the main thread, where Python runs all handlers of signals; on others it does nothing.
    """

    def __init__(self) -> None:
        # Not get_ident(), which is another one in each of gevent's greenlets.
        self._thread = threading.main_thread().native_id
        self._depth = 0
        self._came: list[int] = []

    def install(self) -> None:
        """Hold back the present handlers of the signals that end a worker; on the main thread, when they are set."""
        if threading.get_native_id() != self._thread:
            return
        for number in ENDS_WORKER:
            handle = signal.getsignal(number)
            if callable(handle):
                signal.signal(number, self._held_back(handle))

    def _held_back(self, handle: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
        def handle_or_keep(number: int, frame: FrameType | None) -> None:
            if self._depth:
                self._came.append(number)
            else:
                handle(number, frame)

        return handle_or_keep

    def __enter__(self) -> None:
        if threading.get_native_id() == self._thread:
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_native_id() != self._thread:
            return
        self._depth -= 1
        while self._came and not self._depth:
            # By whatever handler there is by now: the first signal that ends a worker replaces those of the next.
            signal.raise_signal(self._came.pop(0))


class ShieldedLock:
    """A lock whose holder is behind a shield, so that a signal's handler never finds it held by its own thread."""

    def __init__(self, shield: Shield) -> None:
        self._shield = shield
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._shield.__enter__()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._shield.__exit__()
