"""`--watch`: a command again and again, until Ctrl-C."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from typing import Any

import click

from entitycelery.exceptions import EntityError

from . import exits
from .command import Command
from .session import KEY
from .values import duration

DEFAULT = "2s"
SHORTEST_S = 0.1
_PERIOD = re.compile(r"\d[\d.]*[smhd]?\Z")


class WatchedCommand(Command):
    """A command that shows something, and with `--watch` goes on showing it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--watch", "watch_s"], type=period, metavar="[PERIOD]", help=f"Again every {DEFAULT}, or so often."
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # click would take an address behind --watch for its value.
        following = [*args, ""][1:]
        bare = [word == "--watch" and not _PERIOD.match(after) for word, after in zip(args, following, strict=True)]
        return super().parse_args(
            ctx, [f"--watch={DEFAULT}" if is_bare else word for word, is_bare in zip(args, bare, strict=True)]
        )

    def invoke(self, ctx: click.Context) -> Any:
        watch_s = ctx.params.pop("watch_s", None)
        if watch_s is None:
            return super().invoke(ctx)
        try:
            while True:
                self._show(ctx, watch_s)
                time.sleep(watch_s)
        except KeyboardInterrupt:
            # That is how watching ends.
            ctx.exit(exits.OK)

    def _show(self, ctx: click.Context, watch_s: float) -> None:
        session = ctx.meta[KEY]
        if sys.stdout.isatty():
            click.clear()
            click.echo(f"{ctx.command_path}, every {watch_s:g} s, {datetime.now().astimezone():%H:%M:%S}\n")
        try:
            super().invoke(ctx)
        except (exits.CommandFailed, EntityError) as exc:
            # What is not there yet, or away for a while, is worth waiting for.
            if exits.code_of(exc) == exits.USAGE:
                raise
            exits.report(exc, verbose=session.verbose)
        if session.output == "text" and not sys.stdout.isatty():
            click.echo()


def period(value: str | float) -> float:
    """The time between two looks."""
    period_s = duration(value)
    if period_s < SHORTEST_S:
        raise click.BadParameter(f"at least {SHORTEST_S:g} s, got {period_s:g} s.")
    return period_s
