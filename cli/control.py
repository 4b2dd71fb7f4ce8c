"""`cancel`, `reschedule`: pending messages, named by their ids or by a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from entitycelery import Call, Change
from entitycelery.address import parse_address
from entitycelery.message import Status

from .command import Command
from .exits import FAILED, NOT_FOUND, CommandFailed
from .output import print_records
from .session import Session, pass_session
from .values import duration
from .values import instant as to_instant


def named_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """What names the messages."""
    key = click.option("--key", help="Name the message by ADDRESS OPERATION and its key.")
    return click.argument("words", nargs=-1, required=True, metavar="ID... | ADDRESS OPERATION")(key(function))


@click.command("cancel", cls=Command)
@named_messages
@pass_session
def cancel_command(session: Session, words: tuple[str, ...], key: str | None) -> None:
    """Cancel pending messages: they are never handled, and whoever waits for them is told.

    A turn that is running is dropped. Exit code 1 if a message had ended before, 3 if there is none.
    """
    entities = session.entities()
    changes = [entities.cancel(message) for message in named(session, words, key)]
    # That it is cancelled is what was wanted, whoever did it.
    report(session, changes, wanted=Status.CANCELLED)


@click.command("reschedule", cls=Command)
@named_messages
@click.option("--delay", "delay_s", type=duration, help="So long from now: 90, 90s, 5m, 2h, 1d; 0: at once.")
@click.option("--at", "deliver_at", type=to_instant, metavar="INSTANT", help="At this instant, ISO 8601 with its zone.")
@pass_session
def reschedule_command(
    session: Session, words: tuple[str, ...], key: str | None, delay_s: float | None, deliver_at: datetime | None
) -> None:
    """Give pending messages, delayed or not or waiting for a retry, another due time.

    A turn that is running is dropped. Exit code 1 if a message had ended before, 3 if there is none.
    """
    if (delay_s is None) == (deliver_at is None):
        raise click.UsageError("Give --delay or --at.")
    entities = session.entities()
    messages = named(session, words, key)
    report(session, [entities.reschedule(one, delay_s=delay_s, deliver_at=deliver_at) for one in messages])


def named(session: Session, words: Sequence[str], key: str | None) -> Sequence[str | Call[..., Any]]:
    """The messages that are meant."""
    if key is None:
        return words
    if len(words) != 2:
        raise click.UsageError("--key belongs to ADDRESS OPERATION: give both, and no ids.")
    address, operation = words
    entities = session.entities()
    ref = entities.ref(address)
    name = parse_address(address).type
    kind = next(kind for kind in entities.types if name in (kind.name, *kind.aliases))
    call: Call[..., Any] = getattr(ref, kind.operation(operation).attribute)
    return [call.options(key=key)]


def report(session: Session, changes: Sequence[Change], *, wanted: Status | None = None) -> None:
    """Print what became of each message; the first one that could not be changed gives the exit code."""
    records = [
        {"id": change.message_id, "outcome": str(change.outcome), "status": change.status and str(change.status)}
        for change in changes
    ]
    print_records(session.output, records, ("id", "outcome", "status"))
    for change in changes:
        if change.outcome == "unknown":
            raise CommandFailed(NOT_FOUND, f"message {change.message_id} was never stored, or its reply is purged")
        if change.outcome == "finished" and change.status is not wanted:
            raise CommandFailed(FAILED, f"message {change.message_id} had ended before: {change.status}")
