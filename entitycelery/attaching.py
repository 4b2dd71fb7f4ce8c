"""What a Celery app gets when entities are attached to it: settings, worker steps and options, and a default broker."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click
from celery import Celery
from celery.utils.imports import symbol_by_name

from entitycelery.settings import SETTING_NAMES
from entitycelery.storage.sql.url import driver_url
from entitycelery.transports.folder import configure as folder_settings

EMBEDDED_DATABASE = ".entitycelery/store.db"

_CELERYS_CONTROL = "celery.worker.control"
_REMOTE_CONTROL = "entitycelery.worker.control:entity_drain"
_WORKER_STEPS = {
    "worker": "entitycelery.worker.steps:RunnerStep",
    "consumer": "entitycelery.worker.steps:ShardQueuesStep",
}
_WORKER_OPTIONS = (
    (["--without-entities"], {"is_flag": True, "help": "Host no entities on this worker."}),
    (
        ["--shard-groups"],
        {"help": "Comma-separated shard groups to host; with -Q a worker hosts entities only if this is given."},
    ),
    (["--runner-weight"], {"type": float, "help": "This worker's share of the shards, relative to the others'."}),
)


def attach(app: Celery) -> None:
    """Have the workers of an app host entities, and its command line know of them."""
    app.add_defaults(lambda: dict.fromkeys(SETTING_NAMES))
    for blueprint, step in _WORKER_STEPS.items():
        app.steps[blueprint].add(step)
    for names, options in _WORKER_OPTIONS:
        app.user_options["worker"].add(click.Option(names, **cast("dict[str, Any]", options)))
    if _CELERYS_CONTROL in sys.modules:
        # `celery inspect` and `celery control` ask this process, and not the workers, which commands there are.
        symbol_by_name(_REMOTE_CONTROL)


class EmbeddedDefault:
    """Where no broker is configured, SQLite and a folder beside it serve one machine without any server."""

    def __init__(self) -> None:
        self.is_used = False

    def configure(self, conf: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Give the app a broker where it has none and its database is a file; the overrides that this needs."""
        if self.is_used:
            conf.update(broker_url=None, broker_transport=None)
            self.is_used = False
        if conf.broker_url or conf.broker_read_url or conf.broker_write_url or conf.broker_transport:
            return {}
        given = overrides.get("database_url") or os.environ.get("ENTITY_DATABASE_URL") or conf.entity_database_url
        url = driver_url(given or f"sqlite:///{EMBEDDED_DATABASE}")
        if url.get_backend_name() != "sqlite" or url.database == ":memory:":
            return {}
        conf.update(folder_settings(conf, Path(f"{url.database}.broker")))
        self.is_used = True
        return {} if given else {"database_url": url.render_as_string(hide_password=False)}
