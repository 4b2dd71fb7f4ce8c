"""Ringing beside the sender: a stream of single sends does not wait for the broker between one commit and the next.

A wake-up is a hint, so one that a dying process takes with it costs time only; one that ends in order rings first.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Callable, Sequence

from entitycelery.address import ShardId

_FLUSH_TIMEOUT_S = 1.0

_Rung = Sequence[ShardId] | threading.Event


class LaterRinger:
    """Rings on a thread of its own, which starts at first use, anew after a fork."""

    def __init__(self, ring: Callable[[Sequence[ShardId]], None]) -> None:
        self._ring = ring
        self._pid: int | None = None
        self._waiting: queue.SimpleQueue[_Rung] = queue.SimpleQueue()

    def put(self, shards: Sequence[ShardId]) -> None:
        """Ring for these shards soon; together with what others put meanwhile, each shard once."""
        if self._pid != os.getpid():
            self._start()
        self._waiting.put(shards)

    def flush(self) -> None:
        """Wait, for a second at most, until what was put so far has been rung."""
        if self._pid == os.getpid():
            done = threading.Event()
            self._waiting.put(done)
            done.wait(_FLUSH_TIMEOUT_S)

    def _start(self) -> None:
        # Without a lock, which a fork could leave locked: if two threads start at once, both queues are served.
        waiting: queue.SimpleQueue[_Rung] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(waiting,), name="entitycelery-wakeups", daemon=True).start()
        if self._pid is None:
            atexit.register(self.flush)
        self._waiting, self._pid = waiting, os.getpid()

    def _run(self, waiting: queue.SimpleQueue[_Rung]) -> None:
        while True:
            taken = [waiting.get()]
            while not waiting.empty():
                taken.append(waiting.get())
            shards = {shard for rung in taken if not isinstance(rung, threading.Event) for shard in rung}
            if shards:
                self._ring(sorted(shards))
            for rung in taken:
                if isinstance(rung, threading.Event):
                    rung.set()
