"""Log records: every record of a turn says which turn, and a formatter writes records as JSON.

A filter on handlers, not a record factory: a factory's attributes would collide with the `extra` of the user's own
log calls, which raises.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from entitycelery.telemetry.spans import Span, current_span

TURN_FIELDS = ("entity_address", "message_id", "shard", "operation", "attempt")

# What every record has; the rest of its attributes came with `extra` or a filter.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class TurnFields(logging.Filter):
    """Adds `entity_address`, `message_id`, `shard`, `operation` and `attempt` to every record of a turn.

    That is to each record logged while the turn's handler runs, in its thread or task, by whatever logger. Goes onto
    handlers: workers add it to those that exist when entities start; add it yourself to others. A record's own
    attribute of the same name stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        fields = _turn_fields(current_span())
        for name in TURN_FIELDS if fields else ():
            record.__dict__.setdefault(name, fields.get(name))
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `message`, `process`, `exception` and all of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        document.update((name, value) for name, value in extra.items() if name not in document)
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            document["stack"] = self.formatStack(record.stack_info)
        return _json(document)


def handlers() -> list[logging.Handler]:
    """Every handler of every logger of this process."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    return [handler for logger in loggers for handler in getattr(logger, "handlers", ())]


def name_turns() -> None:
    """Put `TurnFields` onto every handler that has none."""
    for handler in handlers():
        if not any(isinstance(other, TurnFields) for other in handler.filters):
            handler.addFilter(TurnFields())


def _turn_fields(span: Span | None) -> Mapping[str, Any]:
    while span is not None:
        if "entity_address" in span.fields:
            return span.fields
        span = span.parent
    return {}


def _json(document: dict[str, Any]) -> str:
    # A log line must come out whatever somebody put into `extra`.
    try:
        return msgspec.json.encode(document, enc_hook=repr).decode()
    except (TypeError, ValueError, RecursionError):
        return msgspec.json.encode({name: _printable(value) for name, value in document.items()}).decode()


def _printable(value: object) -> str:
    return str(value).encode(errors="replace").decode()
