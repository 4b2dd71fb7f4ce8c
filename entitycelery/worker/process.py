"""The runner process, as the worker that started it sees it.

A subprocess, not a thread: the pool's later forks would inherit a thread's locks locked. It imports neither the app
nor `__main__`; its settings come on standard input, never on the command line.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import entitycelery
from entitycelery.app import EntityCelery

log = logging.getLogger("entitycelery.worker")

_BROKER_SETTINGS = (
    "broker_url",
    "broker_write_url",
    "broker_transport",
    "broker_transport_options",
    "broker_use_ssl",
    "broker_login_method",
    "broker_failover_strategy",
)
_STOP_TIMEOUT_S = 3.0


class RunnerProcess:
    """Starts the runner process, starts another when it has ended, and ends it with the worker."""

    def __init__(self, entities: EntityCelery) -> None:
        self._entities = entities
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        package_home = str(Path(entitycelery.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [package_home, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "entitycelery.worker.runner"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        # It fits into the pipe, so this does not wait for the process to be ready.
        self._process.stdin.write(pickle.dumps(self._configuration()))
        self._process.stdin.close()

    def ensure_alive(self) -> None:
        """Start another runner if this one has ended; never blocks."""
        if self._stopping or self._process is None or self._process.poll() is None:
            return
        log.error("the runner process ended with %s, starting another", self._process.returncode)
        self.start()

    def stop(self) -> None:
        """End the runner, in bounded time."""
        self._stopping = True
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_TIMEOUT_S)

    def _configuration(self) -> dict[str, Any]:
        conf: Mapping[str, Any] = self._entities.app.conf
        return {
            "parent_pid": os.getpid(),
            "settings": self._entities.settings,
            "broker": {name: conf[name] for name in _BROKER_SETTINGS if conf.get(name) is not None},
        }
