"""Whether what a page shows is what came out."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_BLANKS = re.compile(r" {2,}")


def check_output(where: str, shown: str, actual: str, *, numbers_vary: bool = False) -> None:
    """Compare a shown output with the actual one: `...` stands for anything, blanks at the ends of lines for nothing.

    Raises:
        AssertionError: They differ.
    """
    head = _trimmed(shown)
    open_ended = head.endswith("\n...")
    head = head.removesuffix("\n...")
    pattern = ".*?".join(_literally(part, numbers_vary) for part in head.split("..."))
    rest = r"(?:\n.*)?" if open_ended else ""
    if re.fullmatch(pattern + rest, _trimmed(actual), re.DOTALL) is None:
        raise AssertionError(f"{where}: shown:\n{shown}\nbut it was:\n{actual}")


def _literally(text: str, numbers_vary: bool) -> str:
    if not numbers_vary:
        return re.escape(text)
    # The width of a column follows its numbers.
    parts = [_BLANKS.split(part) for part in _NUMBER.split(text)]
    return r"[\d,.]+".join(" +".join(re.escape(piece) for piece in part) for part in parts)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
