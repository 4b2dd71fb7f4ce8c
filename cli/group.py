"""The group of commands: one definition for `entitycelery` and for `celery -A app entity`."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from . import exits
from .command import OUTPUTS
from .session import KEY, Session


class Home(NamedTuple):
    """Where a command lives, and its line in the help: so the help needs to import none of them."""

    module: str
    summary: str


COMMANDS = {
    "send": Home("messages", "Send a message to an entity."),
    "ask": Home("messages", "Send a message and print the handler's result."),
    "reply": Home("messages", "Print the outcome of a message."),
    "messages": Home("messages", "List pending messages."),
    "cancel": Home("control", "Cancel pending messages."),
    "reschedule": Home("control", "Give pending messages another due time."),
    "dead": Home("dead", "List, retry and discard dead letters."),
    "state": Home("states", "Print the committed state of an entity."),
    "timers": Home("states", "List the timers that an entity has set."),
    "signal": Home("signals", "Complete a signal."),
    "signals": Home("signals", "List the signals that wait."),
    "workflow": Home("workflows", "List, show and cancel workflows."),
    "list": Home("states", "List entities."),
    "entity": Home("entity", "Delete entities."),
    "schedule": Home("schedules", "List schedules, add, pause and trigger them."),
    "runners": Home("runners", "List the workers that host entities."),
    "shards": Home("shards", "List shards and their holders, change their number."),
    "singleton": Home("singletons", "List, restart and move singletons."),
    "types": Home("kinds", "List the entity types of the app."),
    "check": Home("check", "Check settings, store, schema, broker and types."),
    "db": Home("db", "Create, upgrade and check the schema."),
    "health": Home("health", "Probe a worker: whether it lives, whether it is ready."),
    "demo": Home("demo", "Kill a worker under load, and count."),
}


class CommandGroup(click.Group):
    """Loads a command's module when it is needed, and turns exceptions into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = COMMANDS.get(cmd_name)
        if home is None:
            return None
        module = importlib.import_module(f".{home.module}", __package__)
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, home.summary) for name, home in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as exc:
            exc.message = exits.shortened(exc.message)  # type: ignore[misc] # no subclass of ours
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as exc:
            if isinstance(exc, OSError) and exc.errno == errno.EPIPE:
                # The reader has gone: click ends quietly.
                raise
            session = ctx.meta.get(KEY)
            ctx.exit(exits.report(exc, verbose=session is not None and session.verbose))


def store_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that both groups have."""
    for option in (
        click.option("--verbose", is_flag=True, help="Print tracebacks, the handler's too."),
        click.option("--output", type=click.Choice(OUTPUTS), default="text", show_default=True, help="How to print."),
        click.option("--cluster", metavar="NAME", help="In place of entity_cluster."),
        click.option("--database-url", metavar="URL", help="The store, in place of entity_database_url."),
    ):
        function = option(function)
    return function


@click.group("entitycelery", cls=CommandGroup, epilog=exits.epilog())
@click.option("-A", "--app", "app_name", metavar="MODULE[:ATTRIBUTE]", help="The Celery app, as for celery -A.")
@store_options
@click.version_option(package_name="entitycelery")
@click.pass_context
def entitycelery(ctx: click.Context, /, app_name: str | None, **options: Any) -> None:
    """Send messages to entities, look at them, and look after their store.

    ARGS of operations are JSON values; a word that is no JSON is a string; name=value gives a named argument.
    """
    ctx.meta[KEY] = Session(app_name=app_name, **options)


def main() -> None:
    """The console script."""
    try:
        entitycelery(prog_name="entitycelery")
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)
