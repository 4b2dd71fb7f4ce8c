"""What the sender of a round sends, step by step, and what is owed for each step."""

from __future__ import annotations

from typing import NamedTuple

SENDER = "ann"


class Step(NamedTuple):
    """One send: the numbers it writes, in their order."""

    name: str
    numbers: list[int]
    again: bool = False
    """Whether it has keys, so that a life that finds it unfinished can send it again."""
    in_order: bool = True
    """Whether it is part of the sender's order."""
    pays: bool = False
    """Whether the sender writes a row of its own in the same transaction."""
    leaves: bool = True
    """Whether the numbers are written because of it."""


STEPS = [
    Step("a first send", [1]),
    Step("a send soon after", [2]),
    Step("a keyed send", [3], again=True),
    Step("a keyed send repeated", [3], again=True, leaves=False),
    Step("many", [4, 5, 6]),
    Step("many with keys", [7, 8, 9], again=True),
    Step("in a transaction", [10], pays=True),
    Step("with a key in a transaction", [11], again=True, pays=True),
    Step("rolled back", [12], pays=True, leaves=False),
    Step("with a key that is a mutex", [16]),
    Step("with a delay", [13], again=True, in_order=False),
    Step("asked", [14]),
    Step("a last send", [15]),
]
