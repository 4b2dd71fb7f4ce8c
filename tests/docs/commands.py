"""Runs the commands that a page shows.

Most of them are the library's own or Celery's, and most of what those take is importing: they run in forks of a process
that has imported the libraries, and nothing of the page, before. Whatever needs a shell gets one.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 90.0
_SHOWS_CODE = '; echo "exit code $?"'
_PLAIN = re.compile(r"(entitycelery|celery) [^;|&<>$`\\]*")
_OUTPUT = Path("command.log")

_forks = multiprocessing.get_context("forkserver")
_PRELOADED = ["celery.__main__", "celery.bin.celery", "psycopg2", "redis", "entitycelery.app", "entitycelery.cli"]
_forks.set_forkserver_preload(_PRELOADED)


def run(command: str) -> tuple[int, str]:
    """The exit code and the output of a command, run in the current folder."""
    plain = command.removesuffix(_SHOWS_CODE)
    if not _PLAIN.fullmatch(plain):
        return _in_shell(command)
    process = _forks.Process(target=_in_fork, args=(shlex.split(plain), os.getcwd()))
    process.start()
    process.join(_TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{command}: not done within {_TIMEOUT_S} s")
    output = _OUTPUT.read_text()
    if plain != command:
        return 0, f"{output}exit code {process.exitcode}\n"
    return process.exitcode, output


def _in_fork(words: list[str], folder: str) -> None:
    os.chdir(folder)
    output = os.open(_OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = words
    sys.path.insert(0, folder)
    if words[0] == "entitycelery":
        from entitycelery.cli import main
    else:
        from celery.__main__ import main
    sys.exit(main())


def _in_shell(command: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout
