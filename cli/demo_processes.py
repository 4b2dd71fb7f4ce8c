"""Which processes belong to a worker: everything in its process group, and everything that descends from it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Process(NamedTuple):
    """A process as the system lists it."""

    pid: int
    parent: int
    group: int
    has_ended: bool


def kill_group(pid: int) -> None:
    """SIGKILL to every process of the group that this process leads, at the same moment."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def tree_of(pid: int) -> set[int]:
    """The process, its group and its descendants."""
    listed = [process for process in _all() if not process.has_ended]
    tree = {pid, *(process.pid for process in listed if process.group == pid)}
    while new := {process.pid for process in listed if process.parent in tree} - tree:
        tree |= new
    return tree


def living(pids: Collection[int]) -> set[int]:
    """Those that have not ended."""
    return {process.pid for process in _all() if process.pid in pids and not process.has_ended}


def _all() -> Iterator[Process]:
    return _from_proc() if (_PROC / "self/stat").exists() else _from_ps()


def _from_proc() -> Iterator[Process]:
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # pid (name, which may hold anything) state parent group ...
            state, parent, group = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
        except OSError:
            continue
        yield Process(int(folder.name), int(parent), int(group), state in "ZX")


def _from_ps() -> Iterator[Process]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,state="], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        pid, parent, group, state = line.split()
        yield Process(int(pid), int(parent), int(group), state.startswith("Z"))
