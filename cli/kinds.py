"""`types`: what the code of the app knows, and what is stored that it does not."""

from __future__ import annotations

import inspect
from typing import Any

import click

from .command import Command
from .exits import FAILED, CommandFailed
from .output import print_records
from .session import Session, pass_session


@click.command("types", cls=Command)
@click.option("--check", is_flag=True, help="List instead what is stored and not known to the code.")
@pass_session
def types_command(session: Session, check: bool) -> None:
    """List the entity types of the app, with their operations, queries and state.

    With --check: stored messages, dead letters and states whose type, operation or version the code does not know, with
    their number; exit code 1 if there are any. Reads whole tables.
    """
    if check:
        _check(session)
    else:
        _list(session)


def _check(session: Session) -> None:
    unknown = session.entities().check_types()
    records = [
        {
            "stored": one.stored,
            "type": one.type,
            "operation": one.operation,
            "state_version": one.state_version,
            "count": one.count,
            "why": one.why,
        }
        for one in unknown
    ]
    print_records(session.output, records, ("stored", "type", "operation", "state_version", "count", "why"))
    if unknown:
        kinds = "kind is" if len(unknown) == 1 else "kinds are"
        raise CommandFailed(FAILED, f"{len(unknown)} stored {kinds} not known to the code of this app")


def _list(session: Session) -> None:
    records = []
    for kind in session.entities().types:
        operations = {name: _signature(operation.function) for name, operation in sorted(kind.operations.items())}
        records.append(
            {
                "type": kind.name,
                "aliases": list(kind.aliases),
                "module": kind.module,
                "operations": operations,
                "queries": {name: _signature(query.function) for name, query in sorted(kind.queries.items())},
                "state": {name: _annotation(kind.model.annotations[name]) for name in kind.model.fields},
                "view": kind.view_name,
            }
        )
    if session.output != "text":
        print_records(session.output, records, ())
        return
    lines = [
        {"type": record["type"], "kind": group, "name": name, "signature": text}
        for record in records
        for group in ("operations", "queries", "state")
        for name, text in _items(record[group])
    ]
    print_records("text", lines, ("type", "kind", "name", "signature"))


def _items(mapping: Any) -> list[tuple[str, str]]:
    return list(mapping.items())


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    return str(signature.replace(parameters=list(signature.parameters.values())[1:]))


def _annotation(annotation: Any) -> str:
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
