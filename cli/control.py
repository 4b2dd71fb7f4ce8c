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
    for decorate in (
        click.option("--unique", is_flag=True, help="The key is a mutex: the message that holds it."),
        click.option("--key", help="Name the message by ADDRESS OPERATION and its key."),
        click.argument("words", nargs=-1, required=True, metavar="ID... | ADDRESS OPERATION"),
    ):
        function = decorate(function)
    return function


@click.command("cancel", cls=Command)
@named_messages
@pass_session
def cancel_command(session: Session, words: tuple[str, ...], key: str | None, unique: bool) -> None:
    """Cancel pending messages: they are never handled, and whoever waits for them is told.

    A turn that is running is dropped. Exit code 1 if a message had ended before, 3 if there is none.
    """
    entities = session.entities()
    changes = [entities.cancel(message) for message in named(session, words, key, unique=unique)]
    # That it is cancelled is what was wanted, whoever did it.
    report(session, changes, wanted=Status.CANCELLED)


@click.command("reschedule", cls=Command)
@named_messages
@click.option("--delay", "delay_s", type=duration, help="So long from now: 90, 90s, 5m, 2h, 1d; 0: at once.")
@click.option("--at", "deliver_at", type=to_instant, metavar="INSTANT", help="At this instant, ISO 8601 with its zone.")
@pass_session
def reschedule_command(
    session: Session,
    words: tuple[str, ...],
    key: str | None,
    unique: bool,
    delay_s: float | None,
    deliver_at: datetime | None,
) -> None:
    """Give pending messages, delayed or not or waiting for a retry, another due time.

    A turn that is running is dropped. Exit code 1 if a message had ended before, 3 if there is none.
    """
    if (delay_s is None) == (deliver_at is None):
        raise click.UsageError("Give --delay or --at.")
    entities = session.entities()
    messages = named(session, words, key, unique=unique)
    report(session, [entities.reschedule(one, delay_s=delay_s, deliver_at=deliver_at) for one in messages])


def named(session: Session, words: Sequence[str], key: str | None, *, unique: bool) -> Sequence[str | Call[..., Any]]:
    """The messages that are meant."""
    if key is None:
        if unique:
            raise click.UsageError("--unique says what kind of key --key is: give both.")
        return words
    if len(words) != 2:
        raise click.UsageError("--key belongs to ADDRESS OPERATION: give both, and no ids.")
    address, operation = words
    entities = session.entities()
    ref = entities.ref(address)
    name = parse_address(address).type
    kind = next(kind for kind in entities.types if name in (kind.name, *kind.aliases))
    call: Call[..., Any] = getattr(ref, kind.operation(operation).attribute)
    # Which rule it was sent with makes no difference.
    return [call.options(key=key, unique="reject" if unique else None)]


def report(session: Session, changes: Sequence[Change], *, wanted: Status | None = None) -> None:
    """Print what became of each message; the first one that could not be changed gives the exit code."""
    records = [
        {"id": change.message_id, "outcome": str(change.outcome), "status": change.status and str(change.status)}
        for change in changes
    ]
    print_records(session.output, records, ("id", "outcome", "status"))
    for change in changes:
        if change.outcome == "unknown" and not change.message_id:
            raise CommandFailed(NOT_FOUND, "no message holds this key")
        if change.outcome == "unknown":
            raise CommandFailed(NOT_FOUND, f"message {change.message_id} was never stored, or its reply is purged")
        if change.outcome == "finished" and change.status is not wanted:
            raise CommandFailed(FAILED, f"message {change.message_id} had ended before: {change.status}")
