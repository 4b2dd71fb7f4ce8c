"""From words on a command line to durations, instants and arguments of operations; `@file` is what a file holds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from .command import Command

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)\Z")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_NEGATIVE_NUMBER = re.compile(r"-\.?\d")


def duration(value: str | float) -> float:
    """`90`, `90s`, `5m`, `2h`, `1d`, as seconds."""
    match = _DURATION.match(str(value))
    if match is None:
        raise click.BadParameter(f"{value!r} is no duration: write 90, 90s, 5m, 2h or 1d.")
    return float(match[1]) * _UNIT_S[match[2]]


def instant(value: str | datetime) -> datetime:
    """An instant in ISO 8601 with its zone."""
    try:
        parsed = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no instant in ISO 8601, such as 2030-01-31T09:00:00+01:00.") from None
    if parsed.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no time zone, so it names no moment: add Z or +01:00.")
    return parsed


class AmbiguousError(ValueError):
    """JSON that could be read in two ways."""


class OperationCommand(Command):
    """A command whose words may be negative numbers: `send Account/alice deposit -5`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**self.context_settings, "ignore_unknown_options": True}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        free = len(args) - args.index("--") - 1 if "--" in args else 0
        rest = super().parse_args(ctx, args)
        words: Sequence[str] = ctx.params.get("words") or ()
        for word in words[: max(0, len(words) - free)]:
            if word.startswith("-") and word != "-" and not _NEGATIVE_NUMBER.match(word):
                _no_such_option(word, ctx)
        return rest


def _no_such_option(word: str, ctx: click.Context) -> NoReturn:
    raise click.NoSuchOption(word.partition("=")[0], ctx=ctx)


def arguments_of(words: Sequence[str], parameters: Collection[str]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and named arguments that words stand for.

    Raises:
        click.UsageError: A name is given twice, or a file cannot be read.
    """
    if sum(word == "@-" or word.endswith("=@-") for word in words) > 1:
        raise click.UsageError("@- is standard input, which can be read once.")
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in parameters:
            if name in named:
                raise click.UsageError(f"{name}= is given twice.")
            named[name] = value_of(value)
        else:
            positional.append(value_of(word))
    return positional, named


def value_of(word: str) -> Any:
    """The JSON value that a word is, else the word; `@file` and `@-` are what is in there, `@@` is a plain `@`."""
    if word.startswith("@@"):
        return word[1:]
    text = content_of(word[1:]) if word.startswith("@") else word
    try:
        return parsed(text)
    except AmbiguousError as exc:
        raise click.UsageError(f"{exc}.") from exc
    except (ValueError, RecursionError):
        return text


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        AmbiguousError: An object in it names a field twice.
        ValueError, RecursionError: It is none.
    """
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)


def content_of(name: str) -> str:
    """The text of a file; of standard input for `-`.

    Raises:
        click.UsageError: It cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else "it is not text in UTF-8"
        raise click.UsageError(f"@{name}: {why}. A text that begins with @ is written @@{name}.") from exc


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise AmbiguousError(f"the JSON object has the field {twice!r} twice")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
