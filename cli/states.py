"""`state`, `timers`, `list`."""

from __future__ import annotations

import json
from typing import Any

import click

from entitycelery.address import parse_address

from .completion import addresses_of, types_of
from .exits import NOT_FOUND, USAGE, CommandFailed
from .output import instant, print_record, print_records
from .session import Session, pass_session
from .watch import WatchedCommand


@click.command("state", cls=WatchedCommand)
@click.argument("address", shell_complete=addresses_of)
@pass_session
def state_command(session: Session, address: str) -> None:
    """Print the committed state of an entity; exit code 3 if it has none."""
    entities = session.entities()
    ref = entities.ref(address)
    stored = entities.store.state(parse_address(str(ref)))
    if stored.state is None:
        raise CommandFailed(NOT_FOUND, f"{ref} does not exist: no committed state")
    status = entities.status(ref)
    fields: dict[str, Any] = json.loads(stored.state)
    head = {"address": str(ref), "version": stored.version, "status": status.status, "pending": status.pending}
    print_record(session.output, {**head, **fields} if session.output == "text" else {**head, "state": fields})


@click.command("timers", cls=WatchedCommand)
@click.argument("address", shell_complete=addresses_of)
@pass_session
def timers_command(session: Session, address: str) -> None:
    """List the timers that an entity has set, by when they are due."""
    entities = session.entities()
    records = [
        {
            "name": timer.name,
            "operation": timer.operation,
            "args": json.loads(timer.args),
            "due_at": instant(timer.due_epoch_s),
            "every_s": timer.every_s,
            "id": timer.message_id,
        }
        for timer in entities.timers(entities.ref(address))
    ]
    print_records(session.output, records, ("name", "operation", "args", "due_at", "every_s", "id"))


@click.command("list", cls=WatchedCommand)
@click.argument("type_name", metavar="[TYPE]", required=False, shell_complete=types_of)
@click.option("--after", metavar="ADDRESS", help="Begin after this entity.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@pass_session
def list_command(session: Session, type_name: str | None, after: str | None, limit: int) -> None:
    """List the entities that have a committed state, in the order of their addresses."""
    entities = session.entities()
    if type_name is not None:
        kinds = [kind.name for kind in entities.types if type_name in (kind.name, *kind.aliases)]
        if not kinds:
            known = ", ".join(kind.name for kind in entities.types) or "none"
            raise CommandFailed(USAGE, f"no entity type {type_name!r} is registered with this app; it knows: {known}")
        type_name = kinds[0]
    found = entities.entities(type_name, after=after, limit=limit + 1)
    print_records(session.output, [{"address": address} for address in found[:limit]], ("address",))
    if len(found) > limit:
        click.echo(f"more: --after {found[limit - 1]}", err=True)
