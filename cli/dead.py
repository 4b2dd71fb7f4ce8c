"""`dead list|show|retry|discard`: messages that were given up on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from entitycelery import DeadLetter, DeadLetterFilter
from entitycelery.address import parse_address

from .command import Confirmation, Group, confirmed
from .completion import addresses_of, types_of
from .exits import NOT_FOUND, CommandFailed
from .messages import said
from .output import instant, print_record, print_records
from .session import Session, pass_session
from .values import duration
from .watch import WatchedCommand

if TYPE_CHECKING:
    from entitycelery import EntityCelery

COLUMNS = ("id", "address", "operation", "args", "attempts", "reason", "failure", "died_at")
_PAGE = 500


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which dead letters are meant."""
    for option in (
        click.option("--newer-than", "younger_than_s", type=duration, help="Died less than so long ago."),
        click.option("--older-than", "older_than_s", type=duration, help="Died so long ago or longer: 90, 5m, 2h, 1d."),
        click.option("--reason", help="Of this reason, such as HandlerFailed or Quarantined."),
        click.option("--operation", help="Of this operation."),
        click.option("--address", shell_complete=addresses_of, help="Of this entity, Type/id."),
        click.option("--type", "type_name", shell_complete=types_of, help="Of this entity type and its aliases."),
    ):
        function = option(function)
    return function


def choice(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the commands that change something take: ids, filters, or all; and how carefully."""
    for option in (
        confirmed,
        click.option("--dry-run", is_flag=True, help="Only list what would be taken."),
        click.option("--all", "everything", is_flag=True, help="All dead letters."),
        filters,
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        function = option(function)
    return function


@click.group("dead", cls=Group)
def dead_command() -> None:
    """List, retry and discard dead letters: messages that were given up on."""


@dead_command.command("list", cls=WatchedCommand)
@filters
@click.option("--after", type=int, default=0, metavar="SEQ", help="Begin after the letter of this seq.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@pass_session
def list_letters(session: Session, /, after: int, limit: int, **options: Any) -> None:
    """List dead letters in the order in which they were sent."""
    found = session.entities().dead_letters(wanted(**options), after=after, limit=limit + 1)
    print_letters(session, found[:limit])
    if len(found) > limit:
        click.echo(f"more: --after {found[limit - 1].seq}", err=True)


@dead_command.command("show")
@click.argument("message_id", metavar="ID")
@pass_session
def show(session: Session, message_id: str) -> None:
    """Print one dead letter; with --verbose its traceback too. Exit code 3 if there is none."""
    letter = session.entities().dead_letter(message_id)
    record = document(letter)
    if session.verbose:
        record["traceback"] = letter.failure.traceback
    print_record(session.output, record)


@dead_command.command("retry")
@choice
@pass_session
def retry(session: Session, /, **options: Any) -> None:
    """Have dead letters handled again: the same ids and keys, attempts counted anew.

    Takes ids, filters, both, or --all. They come behind all mail that waits.
    """
    act(session, "retry", "retried", session.entities().retry_dead, **options)


@dead_command.command("discard")
@choice
@pass_session
def discard(session: Session, /, **options: Any) -> None:
    """Delete dead letters for good. Takes ids, filters, both, or --all.

    Their failures stay the answer to whoever asks, for entity_reply_retention_s.
    """
    act(session, "discard", "discarded", session.entities().discard_dead, **options)


def act(
    session: Session,
    verb: str,
    done: str,
    change: Callable[[Sequence[str]], list[str]],
    *,
    ids: tuple[str, ...],
    everything: bool,
    dry_run: bool,
    confirmation: Confirmation,
    **options: Any,
) -> None:
    """Choose, show or ask, change, and say what was changed."""
    meant = wanted(ids, **options)
    is_open = meant == DeadLetterFilter()
    if everything != is_open:
        raise click.UsageError("Give ids, filters or --all." if is_open else "--all goes with neither ids nor filters.")
    entities = session.entities()
    if dry_run:
        print_letters(session, list(pages(entities, meant)))
        _complain_of_missing(ids, entities.dead_letter_ids(ids) if ids else ())
        return
    chosen = entities.dead_letter_ids(meant)
    if chosen:
        confirmation.ask(f"{verb.capitalize()} {counted(len(chosen))}?")
    changed = change(chosen)
    if session.output == "text":
        click.echo(f"{counted(len(changed))} {done}")
    else:
        print_record(session.output, {done: changed})
    if verb == "retry" and len(changed) < len(chosen):
        left = counted(len(chosen) - len(changed))
        click.echo(f"{left} left: another message holds the key, or somebody was faster", err=True)
    _complain_of_missing(ids, chosen)


def _complain_of_missing(ids: Sequence[str], found: Sequence[str]) -> None:
    missing = [message_id for message_id in ids if message_id not in found]
    if missing:
        raise CommandFailed(NOT_FOUND, f"no such dead letter: {', '.join(missing)}")


def wanted(
    ids: tuple[str, ...] = (),
    *,
    type_name: str | None,
    address: str | None,
    operation: str | None,
    reason: str | None,
    older_than_s: float | None,
    younger_than_s: float | None,
) -> DeadLetterFilter:
    """The filter that the options make."""
    entity_id = None
    if address is not None:
        parsed = parse_address(address)
        if type_name is not None:
            raise click.UsageError("--address says the type: leave --type out.")
        type_name, entity_id = parsed.type, parsed.id
    return DeadLetterFilter(
        ids=ids or None,
        type=type_name,
        entity_id=entity_id,
        operation=operation,
        reason=reason,
        older_than_s=older_than_s,
        younger_than_s=younger_than_s,
    )


def pages(entities: EntityCelery, meant: DeadLetterFilter) -> Iterator[DeadLetter]:
    """All letters that fit, page by page."""
    after = 0
    while found := entities.dead_letters(meant, after=after, limit=_PAGE):
        yield from found
        after = found[-1].seq


def print_letters(session: Session, letters: Sequence[DeadLetter]) -> None:
    """Print letters as records."""
    print_records(session.output, [document(letter) for letter in letters], COLUMNS)


def document(letter: DeadLetter) -> dict[str, Any]:
    """A letter as a record."""
    failure = letter.failure
    return {
        "id": letter.id,
        "seq": letter.seq,
        "address": str(letter.address),
        "operation": letter.operation,
        "args": json.loads(letter.args),
        "sender": letter.sender,
        "attempts": letter.attempts,
        "crashes": letter.crashes,
        "reason": letter.reason,
        "failure": said(failure),
        "sent_at": instant(letter.sent_at_epoch_s),
        "died_at": instant(letter.died_at_epoch_s),
    }


def counted(number: int) -> str:
    """A number of dead letters in words."""
    return "1 dead letter" if number == 1 else f"{number} dead letters"
