"""The process of a loop, as the runner process that started it sees it."""

from __future__ import annotations

import contextlib
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from entitycelery.settings import Settings
from entitycelery.singleton import LoopSpec
from entitycelery.worker.lines import Inbox, Outbox
from entitycelery.worker.loop_line import Ended, Go, Loaded, Stop, Until

_SOON_S = 0.02


class Home(msgspec.Struct, frozen=True):
    """How the worker was started: its loops are to find what it found."""

    path: list[str]
    """Where it imports from."""
    folder: str
    """Its current one."""
    app: str | None
    """The app as `celery -A` named it."""
    conf: Mapping[str, Any]
    """The way to the broker."""
    settings: Settings


class LoopProcess:
    """Imports the app, waits for `go`, runs the loop; a child of this process that ends with it."""

    def __init__(self, spec: LoopSpec, home: Home, runner_pid: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._in = Inbox(self._socket, msgspec.json.Decoder(Loaded | Ended))
        self._out = Outbox(self._socket)
        configuration = {"link": theirs.fileno(), "runner_pid": runner_pid, "spec": spec, "home": home}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "entitycelery.worker.loop"],
                stdin=subprocess.PIPE,
                cwd=home.folder,
                pass_fds=[theirs.fileno()],
            )
        assert self._process.stdin is not None
        # It fits into the pipe, so this does not wait for the process to be ready.
        with self._process.stdin as stdin:
            stdin.write(pickle.dumps(configuration))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        if self.has_closed:
            # It says nothing more, so it is about to end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SOON_S)
        return self._process.poll()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_closed(self) -> bool:
        """Whether it says nothing more, since it ends or has ended."""
        return self._in.has_ended

    def hear(self) -> list[Loaded | Ended]:
        """What it has said since the last look."""
        return self._in.take_all()

    def say(self, message: Go | Until | Stop) -> None:
        self._out.put(message)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """It has ended."""
        self._socket.close()
