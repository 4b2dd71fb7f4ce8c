"""`db upgrade|current|verify|sql|stats`: the schema and what is in it.

Needs no app where --database-url or ENTITY_DATABASE_URL is given.
"""

from __future__ import annotations

import click

from .command import Command
from .output import cell, print_aligned, print_record, print_records
from .session import Session, pass_session
from .watch import WatchedCommand


class SchemaGroup(click.Group):
    """A group whose commands take --output and --verbose themselves."""

    command_class = Command


@click.group("db", cls=SchemaGroup)
def db_command() -> None:
    """Create, upgrade and check the schema of the store, and count what is in it.

    With the app (-A), or for --database-url or ENTITY_DATABASE_URL alone.
    """


@db_command.command("upgrade")
@pass_session
def upgrade(session: Session) -> None:
    """Create or upgrade the schema; with -A also make one SQL view for each entity type."""
    entities = session.store_entities()
    applied = entities.store.schema.upgrade()
    views = entities.make_views() if session.has_app else []
    if session.output != "text":
        print_record(session.output, {"store": entities.database, "applied": applied, "views": views})
        return
    click.echo(f"{entities.database}: {', '.join(applied) if applied else 'up to date'}")
    if views:
        click.echo(f"views: {', '.join(views)}")


@db_command.command("current")
@pass_session
def current(session: Session) -> None:
    """List the migrations, and whether each is applied."""
    migrations = session.store_entities().store.schema.migrations()
    records = [{"migration": name, "applied": applied} for name, applied in migrations]
    print_records(session.output, records, ("migration", "applied"))


@db_command.command("verify")
@pass_session
def verify(session: Session) -> None:
    """Check that the schema is the one this release needs; exit code 69 if not."""
    entities = session.store_entities()
    entities.store.schema.verify()
    if session.output == "text":
        click.echo(f"{entities.database}: ok")
    else:
        print_record(session.output, {"store": entities.database, "ok": True})


@db_command.command("sql")
@pass_session
def sql(session: Session) -> None:
    """Print the schema as one SQL script; needs no connection."""
    click.echo(session.store_entities().store.schema.sql(), nl=False)


@db_command.command("stats", cls=WatchedCommand)
@pass_session
def stats(session: Session) -> None:
    """Count what is in the store: pending mail, dead letters, replies, table sizes. Reads whole tables."""
    found = session.store_entities().stats()
    replies = {f"replies {status}": count for status, count in found.replies.items()}
    tables = [
        {"table": table.name, "rows": table.rows, "dead_rows": table.dead_rows, "bytes": table.size_bytes}
        for table in found.tables
    ]
    counts = {
        "waiting": found.waiting,
        "oldest_waiting_s": None if found.oldest_waiting_s is None else round(found.oldest_waiting_s, 3),
        "delayed": found.delayed,
        "retried": found.retried,
        "dead_letters": found.dead_letters,
    }
    if session.output != "text":
        document = {**counts, "replies": found.replies, "bytes": found.size_bytes, "tables": tables}
        print_record(session.output, document)
        return
    print_aligned([[name, cell(value)] for name, value in {**counts, **replies, "bytes": found.size_bytes}.items()])
    click.echo()
    print_records("text", tables, ("table", "rows", "dead_rows", "bytes"))
