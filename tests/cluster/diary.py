"""What a loop writes down, and what must hold of it: one line every few milliseconds, in the order of the writes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

DIARY = "diary.jsonl"
"""In the folder of the workers."""
DEAF, FAILS, RETURNS = "deaf", "fails", "returns"
"""Files that say what the loop is to do: not to hear, to raise, to return."""


class Entry(NamedTuple):
    """One line; by the wall clock."""

    at_s: float
    fence: int
    pid: int
    node: str
    what: str


def write(fence: int, what: str) -> None:
    """Add a line, at once and whole."""
    line = {"at_s": time.time(), "fence": fence, "pid": os.getpid(), "node": os.environ["DIARY_NODE"], "what": what}
    file = os.open(DIARY, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)


def read(folder: Path) -> list[Entry]:
    """Every line, in the order in which they were written."""
    file = folder / DIARY
    lines = file.read_text().splitlines() if file.exists() else []
    return [Entry(**json.loads(line)) for line in lines]


def overlaps(entries: list[Entry]) -> list[str]:
    """Lines of a loop that came after a line of a later one."""
    found, latest = [], None
    for entry in entries:
        if latest is None or entry.fence >= latest.fence:
            latest = entry
        else:
            found.append(f"{entry} after {latest}")
    return found
