"""The watch over long turns, from a thread beside the ones that run user code.

One thread per process, asleep while no drain runs. What it does about a long turn is the drain's to say.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Protocol

from entitycelery.exceptions import StoreUnavailable

log = logging.getLogger("entitycelery.turn")

_TICK_S = 0.02


class Watched(Protocol):
    """A drain, as the watch sees it."""

    def look_at_clock(self, now_s: float) -> None:
        """Act on a turn that has become long; called often, must be cheap when there is none."""


class Watch:
    """Looks at every running drain each 20 ms."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._work = threading.Condition(self._mutex)
        self._watched: set[Watched] = set()
        self._pid: int | None = None

    def add(self, drain: Watched) -> None:
        with self._mutex:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._watched.clear()
                threading.Thread(target=self._run, name="entitycelery-watch", daemon=True).start()
            self._watched.add(drain)
            self._work.notify()

    def remove(self, drain: Watched) -> None:
        with self._mutex:
            self._watched.discard(drain)

    def _run(self) -> None:
        while True:
            with self._mutex:
                while not self._watched:
                    self._work.wait()
                watched = list(self._watched)
            now_s = time.monotonic()
            for drain in watched:
                try:
                    drain.look_at_clock(now_s)
                except StoreUnavailable as exc:
                    # The turn is not ours to commit any more; the drain finds out when it ends.
                    log.warning("the watch over a long turn could not reach the store: %s", exc)
                except Exception:
                    log.exception("the watch over a long turn failed")
            time.sleep(_TICK_S)
