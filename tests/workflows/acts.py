"""What steps do in these tests, and what they have done: as often as they really ran."""

from __future__ import annotations

DONE: list[str] = []


def do(what: str) -> str:
    DONE.append(what)
    return f"{what} done"


def refuse(what: str) -> None:
    DONE.append(f"refused {what}")
    raise ValueError(what)


def undo(what: str) -> None:
    DONE.append(f"undo {what}")
