"""The pages of the documentation and the fenced blocks in them.

A comment in the line before a block says what is special about it:

    <!-- not run: why -->       it is shown and not run
    <!-- numbers vary -->       its output is compared without the numbers in it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LANGUAGES = ("python", "console", "bash", "sql", "text")

_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_NUMBERS_VARY = "<!-- numbers vary -->"


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is written in, what the line before it says."""

    line: int
    language: str
    text: str
    not_run: str | None
    numbers_vary: bool

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]


def pages() -> list[Path]:
    """Every page, relative to the root of the repository."""
    return [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: A fence is not closed, or opens a language that nobody runs.
    """
    found: list[Block] = []
    lines = (ROOT / page).read_text().splitlines()
    opened: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = number, fence[1]
            continue
        start, language = opened
        if language not in LANGUAGES:
            raise ValueError(f"{page}:{start}: a block is one of {', '.join(LANGUAGES)}, not {language!r}")
        before = lines[start - 2] if start > 1 else ""
        not_run = _NOT_RUN.match(before)
        text = "\n".join(lines[start : number - 1])
        found.append(Block(start, language, text, not_run and not_run[1], before == _NUMBERS_VARY))
        opened = None
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: the block is not closed")
    return found
