"""Messages between processes of one worker: one JSON object a line, over a socket pair."""

from __future__ import annotations

import contextlib
import socket
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

_LARGEST_READ = 1 << 16
MOST_UNSENT = 1 << 18


class Inbox(Generic[T]):
    """Messages out of a stream that comes in pieces."""

    def __init__(self, sock: socket.socket, decoder: msgspec.json.Decoder[T]) -> None:
        self._socket = sock
        self._decoder = decoder
        self._rest = b""
        self.has_ended = False
        """Whether nothing more comes, since the other end is closed or its process has ended."""

    def take(self) -> list[T]:
        """The messages that one more piece completes; waits for that where the socket waits."""
        return self._completed(self._piece() or b"")

    def take_all(self) -> list[T]:
        """The messages that have come, out of a socket that never waits."""
        found: list[T] = []
        while not self.has_ended and (piece := self._piece()) is not None:
            found += self._completed(piece)
        return found

    def _piece(self) -> bytes | None:
        """What has come; None: nothing yet."""
        try:
            piece = self._socket.recv(_LARGEST_READ)
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        self.has_ended = not piece
        return piece

    def _completed(self, piece: bytes) -> list[T]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [self._decoder.decode(line) for line in lines]


class Outbox:
    """Sends lines without ever waiting: what does not fit goes with the next one, and a full heap takes no more."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unsent = b""

    def put(self, message: msgspec.Struct) -> None:
        if len(self._unsent) < MOST_UNSENT:
            self._unsent += msgspec.json.encode(message) + b"\n"
        # The other end is busy, frozen or gone: whoever reads here notices what matters.
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[self._socket.send(self._unsent, socket.MSG_DONTWAIT) :]
