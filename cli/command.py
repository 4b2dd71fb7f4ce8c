"""What every command has: --output and --verbose, said after the command's name as well as before it."""

from __future__ import annotations

from typing import Any

import click

from .session import KEY

OUTPUTS = ("text", "json", "jsonl")


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
