"""The line between a runner process and the process of a loop: a socket pair, one JSON object a line.

Nothing is ever asked for: the runner says until when the loop may run, again and again, and silence ends it.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading

# Bound before the user's app is imported, which may replace what these modules hold.
from select import select
from time import CLOCK_BOOTTIME, clock_gettime

import msgspec

from entitycelery.worker.lines import Inbox, Outbox


class Go(msgspec.Struct, frozen=True, tag="go"):
    """Runner to loop: run, until then."""

    fence: int
    until_s: float
    grace_s: float
    """How long after that the process ends itself."""


class Until(msgspec.Struct, frozen=True, tag="until"):
    """Runner to loop: go on, until then."""

    until_s: float


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Runner to loop: stop."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Loop to runner: the app is imported."""


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Loop to runner: it is over."""

    failure: str | None
    """What it raised; None: it returned."""


class LoopEnd:
    """The loop's end, with a thread that watches over it.

    `stop` is set when the runner says so, has said nothing in time, or is gone. In the latter two cases the process
    ends itself soon after, whatever the loop does.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._in = Inbox(sock, msgspec.json.Decoder(Go | Until | Stop))
        self._out = Outbox(sock)
        self._until_s: float | None = None
        self._grace_s = 0.0
        self.stop = threading.Event()
        self.go: Go | None = None
        self._has_gone = threading.Event()
        threading.Thread(target=self._watch, name="entitycelery-loop-watch", daemon=True).start()

    def await_go(self) -> Go | None:
        """Wait until the loop may run; None: it never may."""
        self._has_gone.wait()
        return self.go

    def say(self, message: Loaded | Ended) -> None:
        self._out.put(message)

    def _watch(self) -> None:
        while not self._in.has_ended:
            # What has come counts before what is over: a loop that kept this thread waiting is not to die of it.
            if select([self._socket], [], [], self._left_s())[0]:
                for message in self._in.take():
                    self._hear(message)
            elif self.stop.is_set():
                _end_now()
            else:
                self.stop.set()
        # The runner is gone, and somebody may follow it soon.
        self._until_s = min(_now_s(), self._until_s or math.inf)
        self.stop.set()
        self._has_gone.set()
        select([], [], [], self._left_s())
        _end_now()

    def _left_s(self) -> float | None:
        if self._until_s is None:
            return None
        ends_s = self._until_s + (self._grace_s if self.stop.is_set() else 0.0)
        return max(0.0, ends_s - _now_s())

    def _hear(self, message: Go | Until | Stop) -> None:
        if isinstance(message, Stop):
            self.stop.set()
            self._has_gone.set()
            return
        self._until_s = message.until_s
        if isinstance(message, Go):
            self._grace_s = message.grace_s
            self.go = message
            if _now_s() >= message.until_s:
                self.stop.set()
            self._has_gone.set()


def _end_now() -> None:
    # Not the long way: the loop may be anywhere.
    os.kill(os.getpid(), signal.SIGKILL)


def _now_s() -> float:
    return clock_gettime(CLOCK_BOOTTIME)
