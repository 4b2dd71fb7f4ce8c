"""Real `celery worker` processes: started, waited for, killed with their whole tree, their logs kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
RUNNER = "entitycelery.worker.runner"
LOOP = "entitycelery.worker.loop"
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
_TAIL_LINES = 60

started: list[Worker] = []
"""Every worker that some fixture has not ended yet: a failing test shows their logs."""


class Worker:
    """One `celery worker` with its pool and its runner process, in a process group of its own."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *options: str,
        module: str = "tests.celery.apps.bank",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        # The nodes of all runs on one RabbitMQ hear each other.
        self.node = f"{name}@{folder.name}-{os.getpid()}"
        self.log_file = folder / f"{name}.log"
        given = dict(environment or {})
        paths = [*filter(None, [given.pop("PYTHONPATH", "")]), str(ROOT), *filter(None, sys.path)]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", module, "worker", "-n", self.node, *_QUIET, *options],
                cwd=folder,
                env={**os.environ, **given, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    def await_ready(self) -> Worker:
        """Wait until it consumes its queues."""

        def ready() -> bool:
            return " ready." in self.log() or self.process.poll() is not None

        eventually(ready, timeout_s=60)
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log()}"
        return self

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-_TAIL_LINES:])

    def runner_pids(self) -> list[int]:
        """The runner processes that live beside this worker: one, except for moments."""
        return [child.pid for child in self._children() if RUNNER in _command(child)]

    def loop_pids(self) -> list[int]:
        """The processes of loops that live beside its runner process."""
        runners = [psutil.Process(pid) for pid in self.runner_pids()]
        with contextlib.suppress(psutil.NoSuchProcess):
            found = [child for runner in runners for child in runner.children()]
            return [child.pid for child in found if LOOP in _command(child)]
        return []

    def pool_pids(self) -> list[int]:
        """The living pool processes of a prefork worker."""
        return [child.pid for child in self._children() if RUNNER not in _command(child)]

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children()
            return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def terminate(self) -> None:
        """Ask it to end, as an operator would."""
        self.process.terminate()

    def exit_code(self, timeout_s: float = 60) -> int:
        """Wait for its end."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Ask it to end and wait for that; the exit code."""
        self.terminate()
        return self.exit_code()

    def kill_tree(self) -> None:
        """Pull the plug: SIGKILL to the worker, its pool and its runner process at the same moment."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(30)

    def end(self) -> None:
        """Nothing of it outlives its test."""
        self.kill_tree()
        if self in started:
            started.remove(self)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
