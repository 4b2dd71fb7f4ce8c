"""What a mutant is: one rule of the protocol, and the library made to break it, in memory only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.dialects.sqlite import SQLite

Break = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A rule, what breaks it, and the tests that must fail then, each of them."""

    name: str
    rule: str
    break_it: Break
    tests: tuple[str, ...]


def reword(patch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Have every statement that says `old` say `new`; parameters are spelled `:name`, white space is single."""
    for kind in (PostgreSQL, SQLite):
        patch.setattr(kind, "_statement", _reworded(kind._statement, old, new))


def _reworded(real: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    return lambda dialect, text: real(dialect, text.replace(old, new))


def replace_everywhere(patch: pytest.MonkeyPatch, original: Any, broken: Any) -> None:
    """Put `broken` in the place of a function wherever the library has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("entitycelery"):
            for attribute, value in list(vars(module).items()):
                if value is original:
                    patch.setattr(module, attribute, broken)


def around(patch: pytest.MonkeyPatch, owner: Any, method: str, broken: Callable[..., Any]) -> None:
    """Have `broken` called in the place of a method, with the method as its first argument."""
    real = getattr(owner, method)
    patch.setattr(owner, method, lambda *args, **options: broken(real, *args, **options))


def no_op(patch: pytest.MonkeyPatch, owner: Any, method: str) -> None:
    """Have a method do nothing."""
    patch.setattr(owner, method, lambda *args, **options: None)
