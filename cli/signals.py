"""`signal`, `signals`: completing what an entity waits for, and listing what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .completion import addresses_of
from .exits import FAILED, CommandFailed
from .output import instant, print_record, print_records
from .session import Session, pass_session
from .values import OperationCommand, value_of
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import PendingSignal, Signal

COLUMNS = ("address", "name", "then", "since", "expires")


@click.command("signal", cls=OperationCommand)
@click.argument("target", metavar="TOKEN | ADDRESS", shell_complete=addresses_of)
@click.argument("words", nargs=-1, metavar="[NAME] [VALUE]", type=click.UNPROCESSED)
@click.option("--fail", "error", metavar="TEXT", help="Fail it, with this text as the error.")
@click.option("--cancel", is_flag=True, help="Cancel it.")
@pass_session
def signal_command(session: Session, target: str, words: tuple[str, ...], error: str | None, cancel: bool) -> None:
    """Complete a signal, named by its token, or by the entity's ADDRESS and its NAME.

    VALUE is JSON, else a text; @file is what a file holds; without one it is null. Prints `completed`, or `early` where
    nobody expects it yet. Exit code 1 if it is over: completed, timed out or withdrawn before.
    """
    signal, values = named(session, target, words)
    if len(values) + (error is not None) + cancel > 1:
        raise click.UsageError("Give one VALUE, or --fail, or --cancel.")
    if cancel:
        outcome = signal.cancel()
    elif error is not None:
        outcome = signal.fail(error)
    else:
        outcome = signal.succeed(value_of(values[0]) if values else None)
    if outcome == "over":
        raise CommandFailed(FAILED, f"the signal {signal.name!r} of {signal.address} is over")
    if session.output == "text":
        click.echo(str(outcome))
    else:
        record = {"address": str(signal.address), "name": signal.name, "outcome": str(outcome)}
        print_record(session.output, record)


def named(session: Session, target: str, words: Sequence[str]) -> tuple[Signal, Sequence[str]]:
    """The signal that is meant, and the words behind its name. No token has a slash, and every address has."""
    if "/" not in target:
        return session.entities().signal(target), words
    if not words:
        raise click.UsageError("An ADDRESS takes the NAME of the signal.")
    return session.entities().signal(target, words[0]), words[1:]


@click.command("signals", cls=WatchedCommand)
@click.argument("address", required=False, shell_complete=addresses_of)
@click.option("--tokens", is_flag=True, help="Print the tokens too: who has one can complete its signal.")
@click.option("--after", metavar="ADDRESS", help="Begin after this entity.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@pass_session
def signals_command(session: Session, address: str | None, tokens: bool, after: str | None, limit: int) -> None:
    """List the signals that wait to be completed, in the order of addresses."""
    entities = session.entities()
    ref = None if address is None else entities.ref(address)
    found = entities.signals(ref, after=after, limit=limit + 1)
    columns = (*COLUMNS, "token") if tokens else COLUMNS
    print_records(session.output, [record_of(one, tokens=tokens) for one in found[:limit]], columns)
    if len(found) > limit:
        click.echo("more: raise --limit, or --after an address", err=True)


def record_of(signal: PendingSignal, *, tokens: bool) -> dict[str, Any]:
    """What is printed of a signal."""
    record = {
        "address": str(signal.address),
        "name": signal.name,
        "then": signal.then,
        "since": instant(signal.since_epoch_s),
        "expires": None if signal.expires_epoch_s is None else instant(signal.expires_epoch_s),
    }
    return {**record, "token": signal.token} if tokens else record
