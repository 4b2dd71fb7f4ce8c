"""A bank: one store, one broker and one cluster, the app as the tests use it, and the workers that host it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any
from unittest import mock
from uuid import uuid4

import redis
from kombu import Connection

from entitycelery.transports.folder import configure as folder_settings
from tests.celery.workers import Worker
from tests.conftest import url_or_skip
from tests.services import REDIS_MARKER, Services, fresh_postgres_database

BROKERS = ("amqp", "redis", "folder")
POOLS = ("prefork", "threads", "solo", "gevent")
STORES = ("postgresql", "sqlite")
_APPS = Path(__file__).parent / "apps"

_serial = itertools.count()


class Bank:
    """What belongs to one bank; other names are those of its module: `bank.Account`, `bank.entities`, `bank.app`."""

    def __init__(self, folder: Path, conf: Mapping[str, Any], app_name: str = "bank") -> None:
        self.app_name = app_name
        self.folder = folder
        self.conf = dict(conf)
        self.workers: list[Worker] = []
        self.module = self.client()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def environment(self, **conf: Any) -> dict[str, str]:
        """What a process needs to be of this bank."""
        return {"BANK_CONFIG": json.dumps({**self.conf, **conf}), "BANK_FOLDER": str(self.folder)}

    def client(self, **conf: Any) -> ModuleType:
        """The app's module, imported anew in this process, with settings of its own on top."""
        name = f"bank_{next(_serial)}"
        spec = importlib.util.spec_from_file_location(name, _APPS / f"{self.app_name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with mock.patch.dict(os.environ, self.environment(**conf)):
            spec.loader.exec_module(module)
        return module

    def start_worker(
        self,
        *options: str,
        pool: str = "prefork",
        slots: int = 2,
        hostile: str | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
        **conf: Any,
    ) -> Worker:
        """Start a worker and do not wait for it; `hostile` chooses settings of apps/hostile.py."""
        chosen = ["-P", pool, "-l", "INFO", *([] if pool == "solo" else ["-c", str(slots)]), *options]
        environment = {**self.environment(**conf), "BANK_HOSTILE": hostile or "", "C_FORCE_ROOT": "1", **variables}
        module = f"tests.celery.apps.{'hostile' if hostile else self.app_name}"
        worker = Worker(f"w{len(self.workers)}", self.folder, *chosen, module=module, environment=environment)
        self.workers.append(worker)
        return worker

    def worker(self, *options: str, **how: Any) -> Worker:
        """Start a worker and wait until it is ready."""
        return self.start_worker(*options, **how).await_ready()

    def mark(self, name: str) -> str:
        """What a handler has written there; fails until it has."""
        return (self.folder / name).read_text()

    def allow(self, name: str) -> None:
        """Let the handlers go on that wait for this mark."""
        (self.folder / f"{name}.go").touch()

    def pending(self) -> int:
        """How many messages are not handled yet, up to 1,000."""
        return len(self.entities.messages(limit=1_000))

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.module.entities.close()
        self.module.app.close()


@contextmanager
def open_bank(
    services: Services, folder: Path, broker: str, *, store: str | None = None, app_name: str = "bank", **conf: Any
) -> Iterator[Bank]:
    """A bank on one of BROKERS and one of STORES: without a store, PostgreSQL for servers and SQLite for the folder."""
    cluster = f"t_{uuid4().hex[:10]}"
    settings: dict[str, Any] = {
        "entity_cluster": cluster,
        "entity_auto_migrate": True,
        "task_default_queue": f"{cluster}.tasks",
        "task_default_exchange": f"{cluster}.tasks",
        "task_default_routing_key": f"{cluster}.tasks",
        "broker_connection_retry_on_startup": True,
    }
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        if (store or ("sqlite" if broker == "folder" else "postgresql")) == "sqlite":
            settings["entity_database_url"] = f"sqlite:///{folder / 'entities.db'}"
        else:
            server = url_or_skip(services.postgres())
            settings["entity_database_url"] = stack.enter_context(fresh_postgres_database(server))
        if broker != "folder":
            settings["broker_url"] = url_or_skip(getattr(services, broker)())
        elif store == "postgresql":
            # Beside a SQLite file it need not be named.
            settings.update(folder_settings(conf, folder / "broker"))
        if broker == "redis":
            _mark_as_ours(settings["broker_url"])
        if broker == "amqp":
            stack.callback(_delete_queues, settings["broker_url"], cluster, {**settings, **conf})
        bank = Bank(folder, {**settings, **conf}, app_name)
        stack.callback(bank.close)
        yield bank


def _mark_as_ours(url: str) -> None:
    # A run that is killed leaves its keys: without the mark no later run would dare to empty the database.
    with redis.Redis.from_url(url) as database:
        database.set(REDIS_MARKER, os.getpid())


def _delete_queues(url: str, cluster: str, conf: Mapping[str, Any]) -> None:
    shards = conf.get("entity_shards_per_group", 64)
    with Connection(url) as connection:
        for number in range(shards):
            connection.default_channel.queue_delete(f"entity.{cluster}.default.{number}")
        connection.default_channel.queue_delete(f"{cluster}.tasks")
        connection.default_channel.exchange_delete(f"{cluster}.tasks")
