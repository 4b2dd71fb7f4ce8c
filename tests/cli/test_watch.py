"""--watch: again and again, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import COMMAND_TIMEOUT_S, Project, environment, script
from tests.waiting import eventually

CLEARED = b"\x1b[2J"

pytestmark = pytest.mark.parametrize("idle", ["sqlite"], indirect=True)


class Watching:
    """A command that is watching, and what it has shown so far."""

    def __init__(self, project: Project, out: Path, *words: str) -> None:
        self._out, self._err = out, out.with_suffix(".err")
        with self._out.open("wb") as stdout, self._err.open("wb") as stderr:
            self.process = subprocess.Popen(
                [script("entitycelery"), "-A", project.name, *words],
                cwd=project.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(COMMAND_TIMEOUT_S)


@contextlib.contextmanager
def watching(project: Project, out: Path, *words: str) -> Iterator[Watching]:
    command = Watching(project, out, *words)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait(COMMAND_TIMEOUT_S)


def test_a_pipe_gets_one_look_after_the_other_and_ctrl_c_is_exit_code_0(
    idle: Project, address: str, tmp_path: Path
) -> None:
    with watching(idle, tmp_path / "out", "messages", address, "--output", "json", "--watch", "0.1") as command:
        eventually(lambda: command.out.count("[]\n") >= 2)
        idle("send", address, "deposit", "5")
        eventually(lambda: '"amount": 5' in command.out)

        assert command.interrupt() == 0
        assert command.err == ""
        assert all(isinstance(json.loads(line), list) for line in command.out.splitlines())
        assert "\x1b" not in command.out


def test_what_is_not_there_yet_is_awaited(idle: Project, address: str, tmp_path: Path) -> None:
    with watching(idle, tmp_path / "out", "state", address, "--watch=0.1") as command:
        eventually(lambda: command.err.count("does not exist: no committed state") >= 2)

        assert command.interrupt() == 0


def test_an_address_behind_watch_is_no_period(idle: Project, address: str, tmp_path: Path) -> None:
    with watching(idle, tmp_path / "out", "messages", "--output", "json", "--watch", address) as command:
        eventually(lambda: command.out.count("[]\n") >= 1)

        assert command.interrupt() == 0


def test_a_wrong_word_ends_it_at_once(idle: Project) -> None:
    for words in (["messages", "Nobody/1", "--watch"], ["list", "Nobody", "--watch"], ["list", "--watch=0"]):
        assert idle(*words).code == 2


def test_a_terminal_is_cleared_before_each_look(idle: Project) -> None:
    shown, terminal = pty.openpty()
    process = subprocess.Popen(
        [script("entitycelery"), "-A", idle.name, "db", "stats", "--watch", "0.1"],
        cwd=idle.folder,
        env=environment(TERM="xterm"),
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
    )
    os.close(terminal)
    seen = b""

    def looked_twice() -> bool:
        nonlocal seen
        seen += os.read(shown, 65_536)
        return seen.count(CLEARED) >= 2 and b"every 0.1 s" in seen and b"waiting" in seen

    try:
        eventually(looked_twice, timeout_s=COMMAND_TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(COMMAND_TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait(COMMAND_TIMEOUT_S)
        os.close(shown)
