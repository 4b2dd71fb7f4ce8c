"""A worker's log: turns are named in every record, and `entity_log_format = "json"` writes records as JSON."""

from __future__ import annotations

import logging

from celery.app.log import TaskFormatter
from celery.utils.log import ColorFormatter

from entitycelery.settings import Settings
from entitycelery.telemetry import JsonFormatter
from entitycelery.telemetry.records import handlers, name_turns

RUNNER_FORMAT = "[%(asctime)s: %(levelname)s/runner] %(message)s"
LOOP_FORMAT = "[%(asctime)s: %(levelname)s/{name}] %(message)s"


def set_up_worker_log(settings: Settings) -> None:
    """Complete what Celery, or the app, has set up in this process; may be called again.

    Formatters that the app chose itself stay as they are.
    """
    name_turns()
    if settings.log_format == "json":
        for handler in handlers():
            if isinstance(handler.formatter, ColorFormatter | TaskFormatter):
                handler.setFormatter(JsonFormatter())


def set_up_runner_log(settings: Settings) -> None:
    """The log of the runner process, which has no app: standard error."""
    _log_to_standard_error(settings, RUNNER_FORMAT)


def set_up_loop_log(settings: Settings, name: str) -> None:
    """The log of a loop's process, unless its app sets up another one: standard error."""
    _log_to_standard_error(settings, LOOP_FORMAT.replace("{name}", name.replace("%", "%%")))


def _log_to_standard_error(settings: Settings, text: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else logging.Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
