"""One line of `send -`: a JSON object that stands for a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .output import as_json
from .values import instant, parsed

if TYPE_CHECKING:
    from entitycelery import EntityCelery, Prepared

EXPECTED = '{"address": "Type/id", "operation": "name", "args": [...] or {...}}'
_OPTIONS = ("key", "unique", "unique_for_s", "delay_s", "expires_s")
_FIELDS = ("address", "type", "id", "operation", "args", *_OPTIONS, "deliver_at")
_SHOWN = 60


class BadLineError(Exception):
    """What is wrong with a line, and what was expected."""


@dataclass(frozen=True)
class Line:
    """A line that can be sent."""

    number: int
    address: str
    operation: str
    call: Prepared[Any]


def line_of(entities: EntityCelery, number: int, data: bytes) -> Line:
    """The call that a line stands for.

    Raises:
        BadLineError: It is no such object.
        EntityError: No such type or operation, or the arguments do not fit.
    """
    fields = _object(data)
    address, operation = _address(fields), _text(fields, "operation")
    call, _ = call_of(entities, address, operation)
    options = {name: fields[name] for name in _OPTIONS if fields.get(name) is not None}
    if fields.get("deliver_at") is not None:
        options["deliver_at"] = _moment(fields["deliver_at"])
    chosen = call.options(**options)
    args = fields.get("args", [])
    if isinstance(args, list):
        return Line(number, address, operation, chosen.prepare(*args))
    if not isinstance(args, dict):
        raise BadLineError(f"args is {_shown(as_json(args).encode())}; expected a list or an object")
    if "self" in args:
        raise BadLineError("args has an argument called self, which no handler takes")
    return Line(number, address, operation, chosen.prepare(**args))


def call_of(entities: EntityCelery, address: str, operation: str) -> tuple[Any, Any]:
    """The call of an operation by its name on the wire, and the operation.

    Raises:
        ConfigurationError, UnknownEntityType, UnknownOperation: There is none.
    """
    from entitycelery.address import parse_address  # noqa: PLC0415 - lazy: help needs none of it

    ref = entities.ref(address)
    name = parse_address(address).type
    kind = next(kind for kind in entities.types if name in (kind.name, *kind.aliases))
    found = kind.operation(operation)
    return getattr(ref, found.attribute), found


def _object(data: bytes) -> dict[str, Any]:
    try:
        fields = parsed(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise BadLineError(f"it is not UTF-8 at byte {exc.start}") from exc
    except (ValueError, RecursionError) as exc:
        raise BadLineError(f"no JSON: {exc}: {_shown(data)}; expected {EXPECTED}") from exc
    if not isinstance(fields, dict):
        raise BadLineError(f"no JSON object: {_shown(data)}; expected {EXPECTED}")
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise BadLineError(f"unknown field {as_json(unknown[0])}; expected {', '.join(_FIELDS)}")
    return fields


def _address(fields: dict[str, Any]) -> str:
    if "address" not in fields and "type" in fields:
        return f"{_text(fields, 'type')}/{_text(fields, 'id')}"
    if "type" in fields or "id" in fields:
        raise BadLineError("expected either address, or type and id")
    return _text(fields, "address")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        what = f"{name} is {as_json(value)}, no text" if name in fields else f"{name} is missing"
        raise BadLineError(f"{what}; expected {EXPECTED}")
    return value


def _moment(value: object) -> Any:
    try:
        return instant(str(value))
    except click.BadParameter as exc:
        raise BadLineError(f"deliver_at: {exc.message}") from exc


def _shown(data: bytes) -> str:
    text = data.decode(errors="replace").strip()
    return as_json(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
