"""`workflow list|show|cancel|resume|retry|signal`: what runs, what it did, and its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from .command import Group
from .completion import addresses_of, types_of
from .exits import USAGE, CommandFailed
from .output import instant, print_record, print_records
from .session import Session, pass_session
from .signals import signal_command
from .values import duration
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import WorkflowRun, WorkflowStatus

STATES = ("running", "suspended", "undoing", "completed", "failed", "cancelled")
COLUMNS = ("workflow", "status", "steps", "waits", "progress", "started", "ended", "failure")


@click.group("workflow", cls=Group)
def workflow_command() -> None:
    """List workflows, show what they did, cancel them, have them go on."""


workflow_command.add_command(signal_command, "signal")


@workflow_command.command("list", cls=WatchedCommand)
@click.argument("name", shell_complete=types_of)
@click.option("--status", type=click.Choice(STATES), multiple=True, help="Only those; may be repeated.")
@click.option("--older-than", "older_than_s", type=duration, help="Started so long ago or longer: 90, 5m, 2h, 1d.")
@click.option("--newer-than", "younger_than_s", type=duration, help="Started less than so long ago.")
@click.option("--after", metavar="ADDRESS", help="Begin after this one.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Look at so many at most.")
@pass_session
def list_workflows(
    session: Session,
    name: str,
    status: tuple[str, ...],
    older_than_s: float | None,
    younger_than_s: float | None,
    after: str | None,
    limit: int,
) -> None:
    """List the workflows that were started of a definition, in the order of their keys."""
    entities = session.entities()
    definition = entities.workflow_named(name)
    found = entities.entities(name, after=after, limit=limit + 1)
    statuses = [(address, definition.ref(address.partition("/")[2]).status()) for address in found[:limit]]
    now_s = time.time()
    records = [
        summary(address, one)
        for address, one in statuses
        if (not status or one.status in status)
        and (older_than_s is None or now_s - one.started_epoch_s > older_than_s)
        and (younger_than_s is None or now_s - one.started_epoch_s < younger_than_s)
    ]
    print_records(session.output, records, COLUMNS)
    if len(found) > limit:
        click.echo(f"more: --after {found[limit - 1]}", err=True)


@workflow_command.command("show", cls=WatchedCommand)
@click.argument("address", metavar="NAME/KEY", shell_complete=addresses_of)
@pass_session
def show(session: Session, address: str) -> None:
    """Print what a workflow did, in order. Exit code 3 if it has not begun."""
    run = named(session, address)
    entries = [
        {
            "position": position,
            "call": "  " * position.count(".") + entry.described(),
            "state": entry.state,
            "attempts": entry.attempts,
            "at": instant(entry.at_epoch_s),
            "took_s": None if entry.done_epoch_s is None else round(entry.done_epoch_s - entry.at_epoch_s, 3),
            "result": entry.failure.message if entry.failure else entry.value,
        }
        for position, entry in run.timeline()
    ]
    head = summary(run.address, run.status())
    if session.output != "text":
        print_record(session.output, {**head, "history": entries})
        return
    print_record("text", {name: value for name, value in head.items() if value is not None})
    click.echo()
    print_records("text", entries, ("position", "call", "state", "attempts", "at", "took_s", "result"))


@workflow_command.command("cancel")
@click.argument("address", metavar="NAME/KEY", shell_complete=addresses_of)
@pass_session
def cancel(session: Session, address: str) -> None:
    """Have a workflow end, and compensate what it did. Exit code 1 if it has ended, 3 if it has not begun."""
    run = named(session, address)
    status = run.status()
    if status.ended_epoch_s is not None:
        raise CommandFailed(1, f"{run.address} has ended before: {status.status}")
    click.echo(run.cancel().id)


@workflow_command.command("resume")
@click.argument("address", metavar="NAME/KEY", shell_complete=addresses_of)
@pass_session
def resume(session: Session, address: str) -> None:
    """Run the body of a workflow again, once its code is mended.

    What woke it when its body was found to differ from its journal is a dead letter, and is taken up again. Prints the
    ids of the messages that wake it. Exit code 3 if it has not begun.
    """
    for message_id in named(session, address).resume():
        click.echo(message_id)


@workflow_command.command("retry")
@click.argument("address", metavar="NAME/KEY", shell_complete=addresses_of)
@click.option("--from-step", type=click.IntRange(min=0), help="Do this position, and what follows, again.")
@pass_session
def retry(session: Session, address: str, from_step: int | None) -> None:
    """Have a workflow that failed or was cancelled go on; what it did before is remembered.

    It goes on from the last call that failed, or from the beginning if anything was undone. Prints the id of the
    message, whose reply will be the outcome. Exit code 2 if it did not fail or cannot go on from there, 3 if it has not
    begun.
    """
    click.echo(named(session, address).retry(from_step).id)


def named(session: Session, address: str) -> WorkflowRun[Any]:
    """The workflow that is meant."""
    name, slash, key = address.partition("/")
    if not slash:
        raise CommandFailed(USAGE, f"a workflow is written NAME/KEY, got {address!r}")
    return session.entities().workflow_named(name).ref(key)


def summary(address: str, status: WorkflowStatus) -> dict[str, Any]:
    """A workflow in a line."""
    return {
        "workflow": address,
        "status": status.status,
        "steps": status.steps,
        "waits": ", ".join(status.waits) or None,
        "progress": status.progress,
        "started": instant(status.started_epoch_s),
        "ended": None if status.ended_epoch_s is None else instant(status.ended_epoch_s),
        "failure": None if status.failure is None else status.failure.message,
    }
