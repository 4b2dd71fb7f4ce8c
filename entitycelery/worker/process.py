"""The runner process, as the worker that started it sees it.

A subprocess, not a thread: the pool's later forks would inherit a thread's locks locked. It imports neither the app
nor `__main__`; its settings come on standard input, never on the command line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

import entitycelery
from entitycelery.app import EntityCelery
from entitycelery.placement import NewRunner
from entitycelery.worker.link import Status, WorkerEnd, pair
from entitycelery.worker.loop_process import Home

log = logging.getLogger("entitycelery.worker")

_APP_SETTINGS = (
    "broker_url",
    "broker_read_url",
    "broker_write_url",
    "broker_transport",
    "broker_transport_options",
    "broker_use_ssl",
    "broker_login_method",
    "broker_failover_strategy",
    "control_exchange",
    "control_queue_ttl",
    "control_queue_expires",
    "accept_content",
    "task_serializer",
)
_STOP_TIMEOUT_S = 3.0


def _app_name() -> str | None:
    """The app as it was named on the command line."""
    context = click.get_current_context(silent=True)
    name = None if context is None else context.find_root().params.get("app")
    return name if isinstance(name, str) else None


def _weakly(owner: RunnerProcess, method: Callable[[RunnerProcess], None]) -> Callable[[], None]:
    """A method of something that may be gone when it is called."""
    reference = weakref.ref(owner)

    def call() -> None:
        found = reference()
        if found is not None:
            method(found)

    return call


class RunnerProcess:
    """Starts the runner process, starts another when it has ended, and ends it with the worker.

    `link` is this side of the line to the present process; it is another one after a restart.
    """

    def __init__(self, entities: EntityCelery, *, worker: str, address: str, pool: str) -> None:
        self._entities = entities
        self._worker = worker
        self._address = address
        self._pool = pool
        self._app_name = _app_name()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self.link: WorkerEnd | None = None
        os.register_at_fork(after_in_child=_weakly(self, RunnerProcess._close_in_child))
        self.on_start: Callable[[WorkerEnd], None] = lambda link: None
        """Called with the line to each process that is started in the place of an earlier one."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        package_home = str(Path(entitycelery.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))
        self.link, theirs = pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "entitycelery.worker.runner"],
                stdin=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
            )
            assert self._process.stdin is not None
            # It fits into the pipe, so this does not wait for the process to be ready.
            self._process.stdin.write(pickle.dumps(self._configuration(theirs.fileno())))
            self._process.stdin.close()

    def ensure_alive(self) -> None:
        """Start another runner if this one has ended; never blocks."""
        if self._stopping or self._process is None or self._process.poll() is None:
            return
        log.error("the runner process ended with %s, starting another", self._process.returncode)
        if self.link is not None:
            self.link.close()
        self.start()
        assert self.link is not None
        self.on_start(self.link)

    def _close_in_child(self) -> None:
        # What a process of the pool has inherited of the line would hide the end of its parent.
        if self.link is not None:
            self.link.close()

    def leave(self, status: Status) -> None:
        """Have the runner hand its shards over; it ends when it has."""
        self._stopping = True
        if self.link is not None:
            self.link.say(status)

    def stop(self) -> None:
        """End the runner, in bounded time."""
        self._stopping = True
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            # It has been told to leave, and ends by itself unless the database holds it up.
            self._process.wait(_STOP_TIMEOUT_S + self._loops_stop_within_s())
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)
        if self.link is not None:
            self.link.close()

    def _loops_stop_within_s(self) -> float:
        return self._entities.settings.singleton_stop_timeout_s if self._entities.loops else 0.0

    def _configuration(self, link: int) -> dict[str, Any]:
        conf: Mapping[str, Any] = self._entities.app.conf
        settings = self._entities.settings
        app = {name: conf[name] for name in _APP_SETTINGS if conf.get(name) is not None}
        return {
            "parent_pid": os.getpid(),
            "link": link,
            "settings": settings,
            "app": app,
            "loops": [loop.spec for loop in self._entities.loops],
            "home": Home(path=list(sys.path), folder=os.getcwd(), app=self._app_name, conf=app, settings=settings),
            "runner": NewRunner(
                worker=self._worker,
                address=self._address,
                host=socket.gethostname(),
                pid=os.getpid(),
                groups=settings.shard_groups,
                weight=settings.runner_weight,
                pool=self._pool,
                library_version=version("entitycelery"),
                app_version=settings.app_version,
            ),
        }
