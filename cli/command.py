"""What every command has: --output and --verbose, said after the command's name as well as before it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from .session import KEY

OUTPUTS = ("text", "json", "jsonl")


class Confirmation:
    """Asks a person before something happens; a script, which has no terminal, is not asked."""

    def __init__(self, *, assumed: bool) -> None:
        self._assumed = assumed

    def ask(self, question: str) -> None:
        """Ask, and give up on anything but yes.

        Raises:
            click.Abort: The answer was no.
        """
        # Started without a standard input there is none at all.
        if not self._assumed and sys.stdin is not None and sys.stdin.isatty():
            click.confirm(question, abort=True, err=True)


def confirmed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option `--yes`, which reaches the command as `confirmation`."""
    return click.option(
        "--yes",
        "confirmation",
        is_flag=True,
        callback=_confirmation,
        help="Do not ask on a terminal.",
    )(function)


def _confirmation(_ctx: click.Context, _param: click.Parameter, value: bool) -> Confirmation:
    return Confirmation(assumed=value)


class Command(click.Command):
    """A command that takes the options of its output itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--output"], type=click.Choice(OUTPUTS), expose_value=False, callback=_said, help="How to print."
            ),
            click.Option(
                ["--verbose"], is_flag=True, default=None, expose_value=False, callback=_said, help="Print tracebacks."
            ),
        ]


def _said(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    session = ctx.meta.get(KEY)
    if value and session is not None:
        setattr(session, str(param.name), value)


class Group(click.Group):
    """A group whose commands take --output and --verbose themselves."""

    command_class = Command


class ListingGroup(Group):
    """A group whose name alone, or with options, means `list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_list = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, ["list", *args] if is_list else args)
