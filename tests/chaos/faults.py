"""What can happen to the processes of a stage and to its database sessions, each chosen by a seeded generator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

from tests.chaos.stages import Stage

Fault = Callable[[Stage], None]


def _kill(pid: int | None) -> None:
    _signal(pid, signal.SIGKILL)


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_pool_process(stage: Stage) -> None:
    _kill(stage.pool_pid())


def kill_runner_process(stage: Stage) -> None:
    _kill(stage.runner_pid())


def kill_parent(stage: Stage) -> None:
    """Its pool processes live on until a supervisor ends them with the next worker's start."""
    _kill(stage.parent_pid())
    stage.play(stage.random.uniform(0.0, 0.5))
    stage.replace_the_dead()


def kill_worker(stage: Stage) -> None:
    """The plug is pulled: parent, pool and runner process at the same moment."""
    stage.random.choice(stage.workers).kill_tree()
    stage.replace_the_dead()


def kill_client(stage: Stage) -> None:
    _kill(stage.client_pid())
    stage.play(0.05)
    stage.replace_the_dead()


def freeze_pool_process(stage: Stage) -> None:
    _freeze(stage, stage.pool_pid())


def freeze_runner_process(stage: Stage) -> None:
    _freeze(stage, stage.runner_pid())


def freeze_parent(stage: Stage) -> None:
    _freeze(stage, stage.parent_pid())


def freeze_client(stage: Stage) -> None:
    _freeze(stage, stage.client_pid())


def _freeze(stage: Stage, pid: int | None) -> None:
    _signal(pid, signal.SIGSTOP)
    stage.play(stage.random.uniform(0.2, 2.0))
    _signal(pid, signal.SIGCONT)


KILLS: Sequence[Fault] = (kill_pool_process, kill_runner_process, kill_parent, kill_worker, kill_client)
FREEZES: Sequence[Fault] = (freeze_pool_process, freeze_runner_process, freeze_parent, freeze_client)


def end_sessions(url: str, share: float) -> Fault:
    """The fault that ends each session of the test's own database with this probability."""

    def end_some(stage: Stage) -> None:
        stage.end_sessions(url, share)

    return end_some


def strike(stage: Stage, faults: Sequence[Fault], *, times: int, pause_s: tuple[float, float] = (0.3, 1.2)) -> None:
    """Each fault at least once if there are times enough, in random order, with pauses between them."""
    chosen = list(faults) * (times // len(faults)) + stage.random.sample(list(faults), times % len(faults))
    stage.random.shuffle(chosen)
    for fault in chosen:
        print(f"{fault.__name__}")
        fault(stage)
        stage.play(stage.random.uniform(*pause_s))
