"""The demo's workers: real `celery worker` processes, each with its tree in a process group of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .demo_processes import kill_group, living, tree_of
from .exits import FAILED, CommandFailed

_READY_WITHIN_S = 60.0
_GONE_WITHIN_S = 10.0
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

    def kill(self) -> int:
        """Pull the plug: SIGKILL to the worker and all its processes at the same moment; how many they were.

        Raises:
            CommandFailed: One of them lives on.
        """
        tree = tree_of(self.pid)
        if left := self._end(tree):
            raise CommandFailed(FAILED, f"processes of {self.name} survived kill -9: {sorted(left)}")
        return len(tree)

    def end(self) -> None:
        """End it and everything that it started, also when it has ended by itself."""
        # All of them, since each may hold files of the folder that goes next.
        self._end(tree_of(self.pid))

    def _end(self, tree: set[int]) -> set[int]:
        """Kill these processes and wait until they are gone; those that are not in time."""
        kill_group(self._process.pid)
        self._process.wait()
        deadline_s = time.monotonic() + _GONE_WITHIN_S
        while (left := living(tree)) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_EVERY_S)
        return left

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"--- {self.name}: end of its log", *lines])


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

    def kill_one(self) -> tuple[Worker, int]:
        """Pull the plug of the worker that has run longest; it, and how many processes it was."""
        worker = self.alive.pop(0)
        return worker, worker.kill()

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
        """End all workers at once: what they hold is in the store, so none of them needs time to say goodbye."""
        for worker in self._all:
            worker.end()

    def log_tails(self) -> str:
        """The last lines of every log."""
        return "\n".join(worker.log_tail() for worker in self._all)
