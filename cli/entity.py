"""`entity delete`: what is done to an entity as a whole."""

from __future__ import annotations

import click

from .command import Confirmation, Group, confirmed
from .completion import addresses_of
from .exits import NOT_FOUND, CommandFailed
from .messages import awaited, raise_unless_done
from .output import print_record
from .session import Session, pass_session
from .values import duration


@click.group("entity", cls=Group)
def entity_command() -> None:
    """Delete entities."""


@entity_command.command("delete")
@click.argument("address", shell_complete=addresses_of)
@click.option("--wait", is_flag=True, help="Wait until it is deleted.")
@click.option("--timeout", "timeout_s", type=duration, help="Longest wait; default: entity_ask_timeout_s.")
@confirmed
@pass_session
def delete(session: Session, address: str, wait: bool, timeout_s: float | None, confirmation: Confirmation) -> None:
    """Send an entity the message that deletes it, and print its id.

    Messages sent before are handled before it, and one sent later finds a new entity. Exit code 3 if the entity has
    neither a state nor pending messages.
    """
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is the longest wait: give --wait too.")
    entities = session.entities()
    ref = entities.ref(address)
    status = entities.status(ref)
    if not status.exists and not status.pending:
        raise CommandFailed(NOT_FOUND, f"{ref} does not exist: no committed state, no pending message")
    confirmation.ask(f"Delete {ref}?")
    message_id = entities.delete(ref).id
    reply = awaited(session, message_id, timeout_s) if wait else None
    if reply is not None:
        raise_unless_done(reply)
    if session.output != "text":
        print_record(
            session.output, {"id": message_id, "address": str(ref), "status": str(reply.status if reply else "pending")}
        )
    else:
        click.echo(f"{ref} deleted" if reply else message_id)
