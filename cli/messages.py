"""`send`, `ask`, `reply`, `messages`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from entitycelery.message import Failure, Reply, Status
from entitycelery.unique import UNIQUE_RULES, UniqueRule

from .bulk import LINES_AT_ONCE, send_lines
from .command import Command
from .completion import addresses_of, operations_of
from .exits import FAILED, TIMED_OUT, CommandFailed
from .lines import call_of
from .output import cell, instant, print_record, print_records
from .session import Session, pass_session
from .values import OperationCommand, arguments_of, duration
from .values import instant as to_instant
from .watch import WatchedCommand


def call_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that belong to a call."""
    for decorate in (
        click.option("--timeout", "timeout_s", type=duration, help="Longest wait; default: entity_ask_timeout_s."),
        click.option("--expires", "expires_s", type=duration, help="Not after so long."),
        click.option(
            "--at",
            "deliver_at",
            type=to_instant,
            metavar="INSTANT",
            help="Not before this instant, ISO 8601 with its zone.",
        ),
        click.option("--delay", "delay_s", type=duration, help="Not before so long: 90, 90s, 5m, 2h, 1d."),
        click.option("--unique-for", "unique_for_s", type=duration, help="With --unique: taken for so long at least."),
        click.option(
            "--unique", type=click.Choice(UNIQUE_RULES), help="The key is a mutex; what to do if it is taken."
        ),
        click.option("--key", help="The same address, operation and key is the same message."),
    ):
        function = decorate(function)
    return function


def named_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The words that name a call; for `send` they may be missing, since lines can name calls too."""
    for decorate in (
        click.argument("words", nargs=-1, metavar="[ARGS]...", type=click.UNPROCESSED),
        click.argument("operation", required=False, shell_complete=operations_of),
        click.argument("address", required=False, shell_complete=addresses_of),
    ):
        function = decorate(function)
    return function


@click.command("send", cls=OperationCommand)
@named_call
@call_options
@click.option("--wait", is_flag=True, help="Wait for the outcome, and print it.")
@click.option("--file", "file_name", metavar="FILE", help="Send the JSON lines of a file.")
@click.option("--skip-lines", type=click.IntRange(min=0), metavar="N", help="Begin behind so many lines.")
@click.option("--batch", type=click.IntRange(1, 10_000), metavar="N", help="Lines in one transaction; 500.")
@click.option("--check", is_flag=True, help="Check the lines, and store nothing.")
@pass_session
def send_command(
    session: Session,
    /,
    address: str | None,
    operation: str | None,
    words: tuple[str, ...],
    wait: bool,
    timeout_s: float | None,
    **options: Any,
) -> None:
    """Send a message: it is stored when this returns, and will be handled once.

    ARGS are JSON values; a word that is no JSON is a string; name=value gives a named argument; @file is what a file
    holds. Prints the id.

    With - in place of ADDRESS, or --file, it sends JSON lines: {"address": ..., "operation": ..., "args": ...}.
    """
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is the longest wait: give --wait too.")
    lines = {name: options.pop(name) for name in ("file_name", "skip_lines", "batch", "check")}
    if address == "-" or lines["file_name"] is not None:
        refuse_with_lines(lines["file_name"], [address, operation], {"wait": wait, **options})
        send_lines(
            session,
            lines["file_name"] or "-",
            skip=lines["skip_lines"] or 0,
            batch=lines["batch"] or LINES_AT_ONCE,
            check=lines["check"],
        )
        return
    if any(value not in (None, False) for value in lines.values()):
        raise click.UsageError("--skip-lines, --batch and --check go with - or --file.")
    address, operation = both(address, operation)
    message_id = send(session, address, operation, words, **options)
    if wait:
        print_outcome(session, awaited(session, message_id, timeout_s))
    elif session.output == "text":
        click.echo(message_id)
    else:
        print_record(session.output, {"id": message_id, "address": address, "operation": operation})


@click.command("ask", cls=OperationCommand)
@named_call
@call_options
@pass_session
def ask_command(
    session: Session,
    /,
    address: str | None,
    operation: str | None,
    words: tuple[str, ...],
    timeout_s: float | None,
    **options: Any,
) -> None:
    """Send a message, wait for its reply and print the handler's result.

    ARGS are JSON values; a word that is no JSON is a string; name=value gives a named argument; @file is what a file
    holds.
    """
    address, operation = both(address, operation)
    message_id = send(session, address, operation, words, **options)
    print_outcome(session, awaited(session, message_id, timeout_s))


@click.command("reply", cls=Command)
@click.argument("message_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Wait until it is answered.")
@click.option("--timeout", "timeout_s", type=duration, help="Longest wait; default: entity_ask_timeout_s.")
@pass_session
def reply_command(session: Session, message_id: str, wait: bool, timeout_s: float | None) -> None:
    """Print the outcome of a message; exit code 4 while it is pending."""
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is the longest wait: give --wait too.")
    entities = session.entities()
    reply = awaited(session, message_id, timeout_s) if wait else entities.reply(message_id)
    if reply is None:
        print_record(session.output, {"id": message_id, "status": "pending"})
        raise CommandFailed(TIMED_OUT, f"message {message_id} is stored and not answered yet")
    print_record(session.output, document(reply, verbose=session.verbose))
    raise_unless_done(reply)


@click.command("messages", cls=WatchedCommand)
@click.argument("address", required=False, shell_complete=addresses_of)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@pass_session
def messages_command(session: Session, address: str | None, limit: int) -> None:
    """List pending messages, oldest first; those of one entity where ADDRESS is given."""
    entities = session.entities()
    ref = entities.ref(address) if address is not None else None
    records = [
        {
            "id": message.id,
            "address": str(message.address),
            "operation": message.operation,
            "args": json.loads(message.args),
            "shard": str(message.shard),
            "attempt": message.attempt,
            "crashes": message.crashes,
            "sent_at": instant(message.sent_at_epoch_s),
            "due_at": instant(message.due_at_epoch_s),
            "last_failure": said(message.last_failure) if message.last_failure else None,
        }
        for message in entities.messages(ref, limit=limit)
    ]
    columns = ("id", "address", "operation", "args", "attempt", "sent_at", "due_at", "last_failure")
    print_records(session.output, records, columns)


def both(address: str | None, operation: str | None) -> tuple[str, str]:
    """The words that must be there."""
    context = click.get_current_context()
    for value, parameter in ((address, "ADDRESS"), (operation, "OPERATION")):
        if value is None:
            raise click.MissingParameter(ctx=context, param_hint=f"'{parameter}'", param_type="argument")
    assert address is not None
    assert operation is not None
    return address, operation


def refuse_with_lines(file_name: str | None, words: list[str | None], options: dict[str, Any]) -> None:
    """Lines bring their own calls: nothing of a call is said beside them."""
    beside = [word for word in words if word not in (None, "-")]
    beside += [f"--{name.partition('_')[0]}" for name, value in options.items() if value not in (None, False)]
    if beside or (file_name is not None and "-" in words):
        raise click.UsageError(f"lines name their own calls: {', '.join(map(str, beside)) or '-'} cannot go with them.")


def send(
    session: Session,
    address: str,
    operation: str,
    words: tuple[str, ...],
    *,
    key: str | None,
    unique: UniqueRule | None,
    unique_for_s: float | None,
    delay_s: float | None,
    deliver_at: datetime | None,
    expires_s: float | None,
) -> str:
    """Store the message; its id."""
    call, found = call_of(session.entities(), address, operation)
    parameters = list(inspect.signature(found.function).parameters)[1:]
    positional, named = arguments_of(words, parameters)
    call = call.options(
        key=key,
        unique=unique,
        unique_for_s=unique_for_s,
        delay_s=delay_s,
        deliver_at=deliver_at,
        expires_s=expires_s,
    )
    message_id: str = call.send(*positional, **named).id
    return message_id


def awaited(session: Session, message_id: str, timeout_s: float | None) -> Reply:
    """The reply of a stored message."""
    return session.entities().client.reply(message_id, timeout_s)


def print_outcome(session: Session, reply: Reply) -> None:
    """Print the result of a message, or say why there is none."""
    if session.output != "text":
        print_record(session.output, document(reply, verbose=session.verbose))
    raise_unless_done(reply)
    if session.output == "text":
        result = json.loads(reply.result or "null")
        click.echo("null" if result is None else cell(result))


def raise_unless_done(reply: Reply) -> None:
    """Turn a failed reply into the exit code of a failed operation."""
    if reply.status is Status.DONE:
        return
    if reply.failure is None:
        raise CommandFailed(FAILED, f"{reply.address} {reply.operation}: the message is {reply.status}")
    sentence = f"{reply.address} {reply.operation} failed: {said(reply.failure)}"
    raise CommandFailed(FAILED, sentence, reply.failure.traceback)


def document(reply: Reply, *, verbose: bool) -> dict[str, Any]:
    """A reply as a record."""
    record: dict[str, Any] = {
        "id": reply.id,
        "address": str(reply.address),
        "operation": reply.operation,
        "status": str(reply.status),
        "finished_at": instant(reply.finished_at_epoch_s),
    }
    if reply.status is Status.DONE:
        record["result"] = json.loads(reply.result or "null")
    if reply.failure is not None:
        failure = {"type": _type(reply.failure), "message": reply.failure.message, "reason": reply.failure.reason}
        record["failure"] = {**failure, "traceback": reply.failure.traceback} if verbose else failure
    return record


def said(failure: Failure) -> str:
    """A failure as type and message, on one line."""
    return f"{_type(failure)}: {cell(failure.message)}"


def _type(failure: Failure) -> str:
    return failure.type.replace(":", ".").removeprefix("builtins.")
