"""The demo's workers: real `celery worker` processes, each with its tree in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .exits import FAILED, CommandFailed

_READY_WITHIN_S = 30.0
_STOPS_WITHIN_S = 10.0
_LOOK_EVERY_S = 0.02
_TAIL_LINES = 25


class Worker:
    """One `celery -A ... worker`, from its start to its end."""

    def __init__(self, name: str, module: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        options = ["-n", f"{name}@%h", "-c", "2", "-l", "INFO"]
        alone = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", module, "worker", *options, *alone],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check_alive(self) -> None:
        """Raises CommandFailed if the worker has ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise CommandFailed(FAILED, f"{self.name} ended with exit code {code}")

    def is_ready(self) -> bool:
        """Whether it consumes its queues."""
        self.check_alive()
        return b" ready." in self._log.read_bytes()

    def kill(self) -> None:
        """Pull the plug: SIGKILL to the worker, its pool and its runner process at the same moment."""
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to end, as an operator would."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def end(self) -> None:
        """Wait for its end; whoever of its group is still there then is killed."""
        try:
            self._process.wait(_STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"--- {self.name}: end of its log", *lines])

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Workers:
    """All workers of a run; none of them outlives it."""

    def __init__(self, module: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._start: Callable[[str], Worker] = lambda name: Worker(name, module, folder, environment)
        self._all: list[Worker] = []
        self.alive: list[Worker] = []

    def start(self) -> Worker:
        """Start another worker."""
        worker = self._start(f"worker-{len(self._all) + 1}")
        self._all.append(worker)
        self.alive.append(worker)
        return worker

    def kill_one(self) -> Worker:
        """Pull the plug of the worker that has run longest."""
        worker = self.alive.pop(0)
        worker.kill()
        return worker

    def check_alive(self) -> None:
        """Raises CommandFailed if a worker that should live has ended."""
        for worker in self.alive:
            worker.check_alive()

    def await_ready(self) -> None:
        """Wait until every worker consumes its queues."""
        deadline_s = time.monotonic() + _READY_WITHIN_S
        while not all(worker.is_ready() for worker in self.alive):
            if time.monotonic() >= deadline_s:
                raise CommandFailed(FAILED, f"the workers are not ready after {_READY_WITHIN_S:g} s")
            time.sleep(_LOOK_EVERY_S)

    def stop(self) -> None:
        """End all workers."""
        for worker in self._all:
            worker.terminate()
        for worker in self._all:
            worker.end()

    def log_tails(self) -> str:
        """The last lines of every log."""
        return "\n".join(worker.log_tail() for worker in self._all)
