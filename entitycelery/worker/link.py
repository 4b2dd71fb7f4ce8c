"""The line between a worker's parent process and its runner process: a socket pair, one JSON object a line.

Lists of shards are absolute and numbered, never "one more": a message that is lost or late does no harm. Whoever reads
the end of the stream knows that the other has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import structs

from entitycelery.address import ShardId
from entitycelery.sharding.keeper import Heard
from entitycelery.worker.lines import Inbox, Outbox

_LARGEST_READ = 1 << 12


class Consume(msgspec.Struct, frozen=True, tag="consume"):
    """Runner to worker: consume exactly these shards, until then."""

    number: int
    shards: list[ShardId]
    until_s: float
    """By the clock of `now_s`: a worker that was frozen finds lists that are too old to follow."""


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Runner to worker: there is mail in these shards."""

    shards: list[ShardId]


class Status(msgspec.Struct, frozen=True, tag="status"):
    """Worker to runner: which list it has carried out, and how it is."""

    done: int
    busy: list[ShardId]
    """Shards that drains work on though they have left the list."""
    starved: bool
    leaving: bool
    drained: bool = False
    releases: int = 0
    refused: list[ShardId] = []


class WorkerEnd:
    """The parent process's end: never blocks; used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._in = Inbox(sock, msgspec.json.Decoder(Consume | Wake))
        self._out = Outbox(sock)

    @property
    def has_ended(self) -> bool:
        return self._in.has_ended

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Consume | Wake]:
        """What has come since the last look."""
        return self._in.take_all()

    def say(self, status: Status) -> None:
        """Tell the runner how this worker is."""
        self._out.put(status)

    def close(self) -> None:
        self._in.has_ended = True
        self._socket.close()


class RunnerEnd:
    """The runner process's end: a thread listens; anybody may speak."""

    def __init__(self, sock: socket.socket) -> None:
        # gevent makes its sockets non-blocking behind everybody's back, the other end of a pair too.
        sock.setblocking(True)
        self._socket = sock
        self._out = Outbox(sock)
        self._speaking = threading.Lock()
        self._number = 0
        self._heard: Heard | None = None
        self.interrupt, self._news = os.pipe()
        os.set_blocking(self._news, False)
        os.set_blocking(self.interrupt, False)
        self.ended, self._end = os.pipe()
        """Can be read once the worker has ended."""
        self._consumed: frozenset[ShardId] = frozenset()
        self.moved, self._move = os.pipe()
        """Can be read when another list of shards than before is to be consumed, until `settle_moved`."""
        os.set_blocking(self._move, False)
        os.set_blocking(self.moved, False)

    @property
    def heard(self) -> Heard | None:
        return self._heard

    def settle(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.interrupt, _LARGEST_READ)

    def settle_moved(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.moved, _LARGEST_READ)

    def consume(self, shards: Collection[ShardId], for_s: float) -> int:
        with self._speaking:
            self._number += 1
            self._out.put(Consume(self._number, list(shards), now_s() + for_s))
            before, self._consumed = self._consumed, frozenset(shards)
            if before != self._consumed:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._move, b"!")
            return self._number

    def wake(self, shards: Sequence[ShardId]) -> None:
        """Have the worker look for mail in these shards; no broker is needed for it."""
        if shards:
            with self._speaking:
                self._out.put(Wake(list(shards)))

    def listen(self) -> None:
        """Listen until the worker ends; in a thread of its own."""
        inbox = Inbox(self._socket, msgspec.json.Decoder(Status))
        while not inbox.has_ended:
            for status in inbox.take():
                self._hear(status)
        os.write(self._end, b"!")

    def _hear(self, status: Status) -> None:
        before = self._heard
        heard = Heard(
            now_s(),
            status.done,
            frozenset(status.busy),
            status.starved,
            status.leaving,
            status.drained,
            status.releases,
            frozenset(status.refused),
        )
        self._heard = heard
        if before is None or _is_news(before, heard):
            with contextlib.suppress(BlockingIOError):
                os.write(self._news, b"!")


def _is_news(before: Heard, now: Heard) -> bool:
    settled = before.busy - now.busy
    return bool(settled) or now != structs.replace(before, at_s=now.at_s, done=now.done, busy=now.busy)


def now_s() -> float:
    """The clock of both processes; it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def pair() -> tuple[WorkerEnd, Any]:
    """The worker's end, and the socket for the runner process."""
    ours, theirs = socket.socketpair()
    return WorkerEnd(ours), theirs


__all__ = ["Consume", "RunnerEnd", "Status", "Wake", "WorkerEnd", "now_s", "pair"]
