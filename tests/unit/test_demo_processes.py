"""What belongs to a worker is found and killed as a whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from entitycelery.cli import demo_processes
from entitycelery.cli.demo_processes import kill_group, living, tree_of
from tests.waiting import eventually

# A shell, its child, and a grandchild; each would outlive the shell.
TREE = "sleep 300 & sh -c 'sleep 301 & wait' & wait"


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sh", "-c", TREE], start_new_session=True)
    yield process
    kill_group(process.pid)
    process.wait(10)


def test_a_tree_is_the_process_its_children_and_theirs(shell: subprocess.Popen[bytes]) -> None:
    tree = eventually(lambda: len(found := tree_of(shell.pid)) == 4 and found)

    assert shell.pid in tree
    assert os.getpid() not in tree
    assert living(tree) == tree


def test_orphans_still_belong_to_the_group(shell: subprocess.Popen[bytes]) -> None:
    tree = eventually(lambda: len(found := tree_of(shell.pid)) == 4 and found)
    os.kill(shell.pid, signal.SIGKILL)
    shell.wait(10)

    assert tree_of(shell.pid) - {shell.pid} == tree - {shell.pid}
    assert living(tree) == tree - {shell.pid}


def test_a_group_is_killed_as_a_whole(shell: subprocess.Popen[bytes]) -> None:
    tree = eventually(lambda: len(found := tree_of(shell.pid)) == 4 and found)

    kill_group(shell.pid)
    shell.wait(10)

    eventually(lambda: not living(tree))


def test_killing_a_group_that_has_gone_is_no_error(shell: subprocess.Popen[bytes]) -> None:
    kill_group(shell.pid)
    shell.wait(10)

    kill_group(shell.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists() or not shutil.which("ps"), reason="needs /proc and ps")
def test_systems_without_proc_are_asked_by_ps(shell: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    tree = eventually(lambda: len(found := tree_of(shell.pid)) == 4 and found)

    monkeypatch.setattr(demo_processes, "_PROC", Path("/nowhere"))

    assert tree_of(shell.pid) == tree
    assert living(tree) == tree
