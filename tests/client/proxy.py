"""A TCP proxy before PostgreSQL that cuts connections at a moment of the test's choice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

Moment = Literal["before it is sent", "before it is answered"]


class Proxy:
    """Forwards bytes; the next statement that contains `armed` ends its connection, before or after it took effect."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        user = f"{parts.username}@" if parts.username else ""
        self.url = urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{self._listener.getsockname()[1]}"))
        self.cuts = 0
        self._armed: tuple[bytes, Moment] | None = None
        self._meanwhile: Callable[[], object] = lambda: None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_once(self, statement: bytes, moment: Moment, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Cut at the next such statement; `meanwhile` happens before its sender learns of it."""
        self._armed = (statement, moment)
        self._meanwhile = meanwhile

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        deaf = threading.Event()
        threading.Thread(target=self._to_client, args=(client, server, deaf), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(65_536):
                if self._armed and self._armed[0] in data:
                    moment, self._armed = self._armed[1], None
                    self.cuts += 1
                    if moment == "before it is answered":
                        deaf.set()
                        server.sendall(data)
                        # The answer has come, so the statement has taken effect; nobody hears of it.
                        server.recv(65_536, socket.MSG_PEEK)
                    self._meanwhile()
                    break
                server.sendall(data)
        self._end(client, server)

    def _to_client(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError):
            while server.recv(1, socket.MSG_PEEK) and not deaf.is_set():
                client.sendall(server.recv(65_536))
        if not deaf.is_set():
            self._end(client, server)

    @staticmethod
    def _end(*sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
