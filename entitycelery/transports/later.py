"""Ringing beside the sender: a stream of single sends does not wait for the broker between one commit and the next.

A wake-up is a hint, so one that a dying process takes with it costs time only; one that ends in order rings first.

What a stream rings for within some milliseconds goes to the broker together. One by one, each wake-up would have this
thread, the broker and the sender take turns on the processors, which costs far more than the wake-up itself. And a
shard that was rung a moment ago is rung again a moment later, once for all that came meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence

from entitycelery.address import ShardId

log = logging.getLogger("entitycelery.wakeup")

_FLUSH_TIMEOUT_S = 1.0
_TOGETHER_S = 0.005
_AGAIN_S = 0.05

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
            try:
                self._start()
            except RuntimeError:
                # No more threads, or the interpreter is ending.
                self._ring(sorted(set(shards)))
                return
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
        agenda = _Agenda()
        while True:
            flushes = agenda.add(_taken(waiting, agenda.next_in_s(time.monotonic())), time.monotonic())
            shards = agenda.take(time.monotonic(), everything=bool(flushes))
            try:
                if shards:
                    self._ring(shards)
            except Exception:
                # The mail is stored, so the sweep rings; without this thread nothing would ring before it.
                log.exception("ringing for %d shard(s) failed", len(shards))
            for flushed in flushes:
                flushed.set()
            time.sleep(_TOGETHER_S)


def _taken(waiting: queue.SimpleQueue[_Rung], within_s: float | None) -> list[_Rung]:
    """What was put, once something is, or the time is over; None: it does not end."""
    taken: list[_Rung] = []
    with contextlib.suppress(queue.Empty):
        taken.append(waiting.get(timeout=within_s))
        while not waiting.empty():
            taken.append(waiting.get())
    return taken


class _Agenda:
    """Which shards are to be rung, and when."""

    def __init__(self) -> None:
        self._due_s: dict[ShardId, float] = {}
        self._rang_s: dict[ShardId, float] = {}

    def add(self, rung: Sequence[_Rung], now_s: float) -> list[threading.Event]:
        """Have these shards rung, each as soon as it may be; who waits for that."""
        for shard in (shard for one in rung if not isinstance(one, threading.Event) for shard in one):
            self._due_s.setdefault(shard, max(now_s, self._rang_s.get(shard, -math.inf) + _AGAIN_S))
        return [one for one in rung if isinstance(one, threading.Event)]

    def next_in_s(self, now_s: float) -> float | None:
        """In how many seconds the next one is due; None where there is none."""
        return max(0.0, min(self._due_s.values()) - now_s) if self._due_s else None

    def take(self, now_s: float, *, everything: bool) -> list[ShardId]:
        """Those that are due, or everything, to be rung now."""
        due = sorted(shard for shard, at_s in self._due_s.items() if everything or at_s <= now_s)
        for shard in due:
            del self._due_s[shard]
            self._rang_s[shard] = now_s
        return due
