"""A worker's own wire to a server: a TCP proxy that can be cut, mended, and made to fall silent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

_LARGEST_READ = 65_536


class Wire:
    """Stands before the server of a URL; `url` leads through it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        self.url = urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{self._listener.getsockname()[1]}"))
        self._mutex = threading.Lock()
        self._lines: list[_Line] = []
        self._is_cut = self._is_silent = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and each new one as soon as it is there."""
        with self._mutex:
            self._is_cut = True
            lines, self._lines = self._lines, []
        for line in lines:
            line.end()

    def mend(self) -> None:
        """New connections are as ever; those that fell silent stay so."""
        self._is_cut = self._is_silent = False

    def stall(self, name: bytes) -> int:
        """From now on no byte comes through the connections that began with this; how many there are."""
        with self._mutex:
            lines = [line for line in self._lines if name in line.began_with and not line.is_silent | line.has_ended]
        for line in lines:
            line.is_silent = True
        return len(lines)

    def silence(self) -> None:
        """From now on no byte comes through any connection, and none through new ones."""
        self._is_silent = True
        self.stall(b"")

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if self._is_cut:
            client.close()
            return
        try:
            server = socket.create_connection(self._server)
        except OSError:
            client.close()
            return
        line = _Line(client, server)
        with self._mutex:
            self._lines = [*(line for line in self._lines if not line.has_ended), line]
        line.is_silent = self._is_silent
        if self._is_cut:
            line.end()
        line.forward()


class _Line:
    """One connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        self._server = server
        self.began_with = b""
        self.is_silent = False
        self.has_ended = False

    def forward(self) -> None:
        threading.Thread(target=self._pump, args=(self._server, self._client), daemon=True).start()
        self._pump(self._client, self._server)

    def end(self) -> None:
        self.has_ended = True
        for one in (self._client, self._server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_LARGEST_READ):
                if source is self._client and len(self.began_with) < 4_096:
                    self.began_with += data
                if self.is_silent:
                    # Neither end learns anything: as when a machine in between is gone.
                    return
                target.sendall(data)
        if not self.is_silent:
            self.end()
