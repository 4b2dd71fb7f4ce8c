"""Calls on a thread of its own, one after the other: for what may wait until a slot of the pool is free."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Submitter:
    """Takes calls from threads that must not wait, such as the one that frees the pool's slots."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._is_running = False

    def put(self, call: Callable[[], None]) -> None:
        """Have it called soon."""
        self._calls.put(call)
        with self._mutex:
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._run, name="entitycelery-submit", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._calls.get()()
