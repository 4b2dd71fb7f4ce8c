"""What a run of the demo stands on: environment, store and broker, all of its own and given back at its end."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from entitycelery.address import ShardId, queue_name

from .exits import UNAVAILABLE, USAGE, CommandFailed

MODULE = f"{__package__}.demo_app"

_BROKER_TIMEOUT_S = 5
_BESIDE_SQLITE = ("", "-wal", "-shm", ".processes", ".broker")


def environment_for(folder: Path, database_url: str | None, broker: str | None) -> dict[str, str]:
    """The environment of this run: whatever configures the user's own apps is left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENTITY_", "CELERY_"))}
    package = sys.modules[str(__package__).partition(".")[0]]
    home = str(Path(str(package.__file__)).parent.parent)
    if database_url is not None and broker is None and not database_url.startswith("sqlite"):
        broker = f"folder://{folder / 'broker'}"
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, [home, kept.get("PYTHONPATH")])),
        "ENTITY_DATABASE_URL": database_url or f"sqlite:///{folder / 'store.db'}",
        "ENTITY_CLUSTER": f"demo_{uuid4().hex[:12]}",
        # Whoever is killed leaves its temporary files behind: let them lie where they go with the run.
        "TMPDIR": str(folder),
        **({"ENTITY_DEMO_BROKER": broker} if broker else {}),
    }


@contextlib.contextmanager
def environment_set(environment: dict[str, str]) -> Iterator[None]:
    """This process's environment, for a time."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def demo_app() -> Iterator[Any]:
    """The demo's app in this process, with its schema; what the run made on servers is removed at the end.

    Raises:
        CommandFailed: The broker does not answer, or the SQLite file is somebody's.
    """
    # It reads the environment when it is imported, so not before that is set.
    app = importlib.import_module(MODULE)
    entities = app.entities
    files = _files_of(entities)
    if any(file.exists() for file in files):
        raise CommandFailed(USAGE, f"the demo needs a store of its own, and {files[0]} exists already")
    try:
        _check_broker(app)
        entities.store.schema.upgrade()
        yield app
    finally:
        with uninterrupted():
            _remove_queues(app)
            with contextlib.suppress(Exception):
                entities.store.schema.drop()
            entities.close()
            app.app.close()
            for file in files:
                _remove(file)
            sys.modules.pop(MODULE, None)


def _files_of(entities: Any) -> list[Path]:
    url = entities.store.url
    if url.get_backend_name() != "sqlite":
        return []
    return [Path(f"{url.database}{suffix}") for suffix in _BESIDE_SQLITE]


def _remove(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file, ignore_errors=True)
    else:
        file.unlink(missing_ok=True)


def _check_broker(app: Any) -> None:
    with app.app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=_BROKER_TIMEOUT_S)
        except Exception as exc:
            # Every transport has errors of its own.
            sentence = f"the broker {connection.as_uri()} does not answer: {exc}"
            raise CommandFailed(UNAVAILABLE, sentence) from exc


def _remove_queues(app: Any) -> None:
    settings = app.entities.settings
    default = app.app.conf.task_default_queue
    shards = [ShardId(group, n) for group in settings.shard_groups for n in range(settings.shards_per_group)]
    names = [default, *(queue_name(settings.cluster, shard) for shard in shards)]
    # A broker that has gone takes its queues with it, or forgets them in a day.
    with contextlib.suppress(Exception), app.app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=_BROKER_TIMEOUT_S)
        channel = connection.default_channel
        for name in names:
            channel.queue_delete(name)
        channel.exchange_delete(default)
        if hasattr(channel, "client"):
            # On Redis the key of a binding outlives queue and exchange.
            channel.client.delete(f"_kombu.binding.{default}", f"_kombu.binding_permanent.{default}")


@contextlib.contextmanager
def termination_as_exception() -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on Ctrl-C: with everything given back."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    with _handlers({signal.SIGTERM: leave, signal.SIGHUP: leave}):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Whoever cleans up is not disturbed at it."""
    ignored = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)
    with _handlers(ignored):
        yield


@contextlib.contextmanager
def _handlers(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
