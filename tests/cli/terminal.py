"""A command at whose standard input a person sits."""

from __future__ import annotations

import os
import pty
import sys

from tests.cli.support import Project, Ran


def on_terminal(project: Project, *words: str, answer: str | None = None) -> Ran:
    """A command with a terminal as its input, on which `answer` is typed; `err` has what it asks."""
    person, terminal = pty.openpty()
    try:
        if answer is not None:
            os.write(person, f"{answer}\n".encode())
        return project.process(sys.executable, "-m", "entitycelery.cli", "-A", project.name, *words, stdin=terminal)
    finally:
        os.close(terminal)
        os.close(person)
