"""Printing: aligned text for people, one JSON document, or one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

Record = Mapping[str, Any]

_WIDEST_CELL = 80


def print_records(output: str, records: Iterable[Record], columns: Sequence[str]) -> None:
    """Print many records; as text, the given columns of them."""
    if output == "jsonl":
        for record in records:
            click.echo(as_json(record))
        return
    listed = list(records)
    if output == "json":
        click.echo(as_json(listed))
        return
    if listed:
        rows = [[_short(cell(record.get(column))) for column in columns] for record in listed]
        print_aligned([[column.upper().replace("_", " ") for column in columns], *rows])


def print_record(output: str, record: Record) -> None:
    """Print one record; as text, a line for each of its fields."""
    if output == "text":
        print_aligned([[name, cell(value)] for name, value in record.items()])
    else:
        click.echo(as_json(record))


def print_aligned(rows: Sequence[Sequence[str]]) -> None:
    """Print columns of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def cell(value: object) -> str:
    """A value as people read it, on one line."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else as_json(value)
    # Ids and texts come from anywhere: nothing in them may steer a terminal or break a line.
    return text if text.isprintable() else json.dumps(text, ensure_ascii=not text.replace("\n", "").isprintable())


def as_json(value: object) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)


def instant(epoch_s: float | None) -> str | None:
    """An instant in ISO 8601, UTC."""
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "\u2026"
