"""`EntityCelery`: entities on a Celery app. The composition root, the only place that names concrete parts."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import click
from celery import Celery, current_app
from celery.app.utils import find_app
from celery.utils.imports import symbol_by_name

from entitycelery.address import parse_address
from entitycelery.asking import Asking
from entitycelery.calls import Prepared, Sent
from entitycelery.client.client import Client
from entitycelery.controlling import Controlling
from entitycelery.entity import Entity
from entitycelery.entity_type import EntityType, OnFailure
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError
from entitycelery.parts import Parts, compose
from entitycelery.port import Port, current_port, set_default_port
from entitycelery.ref import Ref
from entitycelery.registry import Registry, register_with, shared_registry
from entitycelery.runtime.host import Host
from entitycelery.settings import SETTING_NAMES, Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url, shown
from entitycelery.transports.folder import configure as folder_settings

T = TypeVar("T", bound=Entity)

log = logging.getLogger("entitycelery.app")

EMBEDDED_DATABASE = ".entitycelery/store.db"

_RESULT = "entitycelery.backend:entity_result"
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
)

_by_app: weakref.WeakKeyDictionary[Celery, EntityCelery] = weakref.WeakKeyDictionary()
_latest: list[weakref.ref[EntityCelery]] = []


class EntityCelery(Asking, Controlling):
    """Entities for one Celery app.

    Settings are Celery settings `entity_*`, read at first use. `EntityCelery()` and `init_app(app)` later serve
    applications that make their Celery app in a factory.
    """

    def __init__(self, app: Celery | None = None) -> None:
        self._app: Celery | None = None
        self._registry = Registry(shared_registry)
        self._overrides: dict[str, Any] = {}
        self._has_schema = False
        self._mutex = threading.RLock()
        self._parts: Parts | None = None
        self._embedded = False
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> None:
        """Attach to a Celery app: its workers host entities, its settings are ours.

        Raises:
            ConfigurationError: Attached already, or the app has another EntityCelery.
        """
        if self._app is not None:
            raise ConfigurationError("this EntityCelery has an app already")
        if app in _by_app:
            raise ConfigurationError(f"{app!r} has an EntityCelery already")
        self._app = app
        _by_app[app] = self
        _latest[:] = [weakref.ref(self)]
        set_default_port(_current_port)
        app.add_defaults(lambda: dict.fromkeys(SETTING_NAMES))
        for blueprint, step in _WORKER_STEPS.items():
            app.steps[blueprint].add(step)
        for names, options in _WORKER_OPTIONS:
            app.user_options["worker"].add(click.Option(names, **cast("dict[str, Any]", options)))
        if app.configured:  # type: ignore[attr-defined]
            self._embed_where_nothing_is_configured()
        else:
            app.on_after_configure.connect(self._on_configured, weak=False)

    def _on_configured(self, **_: Any) -> None:
        self._embed_where_nothing_is_configured()

    def _embed_where_nothing_is_configured(self) -> None:
        """Where no broker is configured, SQLite and a folder beside it serve one machine without any server."""
        conf = self.app.conf
        if self._embedded:
            conf.update(broker_url=None, broker_transport=None)
            self._embedded = False
        if conf.broker_url or conf.broker_read_url or conf.broker_write_url or conf.broker_transport:
            return
        given = self._overrides.get("database_url") or os.environ.get("ENTITY_DATABASE_URL") or conf.entity_database_url
        url = driver_url(given or f"sqlite:///{EMBEDDED_DATABASE}")
        if url.get_backend_name() != "sqlite" or url.database == ":memory:":
            return
        if not given:
            self._overrides["database_url"] = url.render_as_string(hide_password=False)
        conf.update(folder_settings(conf, Path(f"{url.database}.broker")))
        self._embedded = True

    @property
    def app(self) -> Celery:
        """The Celery app.

        Raises:
            ConfigurationError: Not attached yet.
        """
        if self._app is None:
            raise ConfigurationError("this EntityCelery has no Celery app yet: call init_app(app)")
        return self._app

    # Registration

    @overload
    def register(self, cls: type[T], /) -> type[T]: ...
    @overload
    def register(
        self,
        /,
        *,
        name: str | None = None,
        aliases: tuple[str, ...] = (),
        state_version: int = 1,
        on_failure: OnFailure = "skip",
        mailbox_capacity: int | None = None,
    ) -> Callable[[type[T]], type[T]]: ...
    def register(self, cls: Any = None, /, **options: Any) -> Any:
        """Register an entity class with this app.

        Args:
            name: Its name on the wire, if not the class's.
            aliases: Other names in addresses: they mean the entity of the type's own name.
            state_version: Raise it together with an `@upgrade(from_version=...)`.
            on_failure: What a message that waits for a retry does to those behind it: `skip` lets them pass,
                `block` holds them back.
            mailbox_capacity: Most pending messages of one entity.

        Raises:
            ConfigurationError: The class cannot be an entity, or its name belongs to another; the sentence says which.
        """

        def register(target: type[T]) -> type[T]:
            registered: type[T] = register_with(self._registry, target, self._adopt, options)
            return registered

        return register if cls is None else register(cls)

    def _adopt(self, kind: EntityType) -> None:
        kind.port_source = self._port

    def autodiscover(self, packages: Sequence[str], related_name: str = "entities") -> None:
        """Import the module `related_name` of each package when the app loads its tasks, as Celery does for tasks."""
        self.app.autodiscover_tasks(list(packages), related_name=related_name)

    @property
    def types(self) -> list[EntityType]:
        """The registered types, by name."""
        return list(self._registry)

    # Sending

    def send_many(self, calls: Sequence[Prepared[Any]]) -> list[Sent[Any]]:
        """Store many messages in one transaction: `entities.send_many([ref.deposit.prepare(5), ...])`.

        Raises:
            KeyConflict, MailboxFull: One was refused, so none is stored.
            SendTimeout: They could not be stored in time.
        """
        port = current_port.get() or self._port()
        ids = port.send([call.send for call in calls])
        return [Sent(message_id, call.operation, port) for message_id, call in zip(ids, calls, strict=True)]

    def ref(self, address: str) -> Any:
        """The reference of an address written `Type/id`.

        Raises:
            ConfigurationError: It is not written so.
            UnknownEntityType: No such type is registered.
        """
        parsed = parse_address(address)
        return Ref(self._registry.get(parsed.type), parsed.id)

    # Parts

    @property
    def settings(self) -> Settings:
        """The settings as read at first use."""
        return self._composed().settings

    @property
    def store(self) -> SqlStore:
        return self._composed().store

    @property
    def client(self) -> Client:
        return self._composed().client

    @property
    def envelope(self) -> Envelope:
        return self._composed().envelope

    @property
    def host(self) -> Host:
        """What runs drains in this process."""
        return self._composed().host

    @property
    def database(self) -> str:
        """The store's URL for people, without its password."""
        return shown(self.store.url)

    def override(self, **settings: Any) -> None:
        """Settings of the command line; they win over all others.

        Raises:
            ConfigurationError: The parts are made already.
        """
        with self._mutex:
            if self._parts is not None:
                raise ConfigurationError("settings can be overridden only before they are first used")
            given = {name: value for name, value in settings.items() if value is not None}
            self._overrides.update(given)
            if "database_url" in given and self._embedded:
                # The folder of the wake-ups lies beside the store.
                self._embed_where_nothing_is_configured()

    def migrate_if_allowed(self) -> bool:
        """Create or upgrade the schema where entity_auto_migrate allows it; whether it does."""
        allowed = self.settings.auto_migrate
        if allowed is None:
            allowed = self.store.url.get_backend_name() == "sqlite"
        if allowed:
            applied = self.store.upgrade()
            if applied:
                log.info("schema upgraded", extra={"migrations": applied})
        return allowed

    def make_views(self) -> list[str]:
        """Make, or make anew, one SQL view per registered type; their names."""
        views = [(kind.view_name, kind.name, kind.view_columns) for kind in self.types]
        names = [name for name, _, _ in views]
        double = next((name for name in names if names.count(name) > 1), None)
        if double:
            raise ConfigurationError(f"two entity types would share the view {double!r}: rename one")
        self.store.make_views(views)
        return names

    def close(self) -> None:
        """Give all connections back."""
        with self._mutex:
            parts, self._parts = self._parts, None
            self._has_schema = False
        if parts is not None:
            parts.store.close()

    def _port(self) -> Port:
        return self._ready().client

    def _ready(self) -> Parts:
        if not self._has_schema:
            # Whoever comes first finds a store, whether or not a worker has ever run.
            self.migrate_if_allowed()
            self._has_schema = True
        return self._composed()

    def _composed(self) -> Parts:
        parts = self._parts
        if parts is None:
            with self._mutex:
                if self._parts is None:
                    self._parts = self._compose()
                parts = self._parts
        return parts

    def _compose(self) -> Parts:
        return compose(self.app, self._registry, self._overrides, self._async_result)

    def _async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        return symbol_by_name(_RESULT)(self, message_id, decode)

    def __repr__(self) -> str:
        return f"<EntityCelery of {self._app!r}>"


def entities_of(app: Celery) -> EntityCelery:
    """The EntityCelery of a Celery app.

    Raises:
        ConfigurationError: It has none.
    """
    found = _by_app.get(app)
    if found is None:
        raise ConfigurationError(f"{app!r} has no entities: create EntityCelery(app) in its module")
    return found


def find_entities(name: str) -> EntityCelery:
    """The EntityCelery of the app written `module[:attribute]`, found as `celery -A` finds it.

    Raises:
        ConfigurationError: The app has none.
        Exception: Whatever the module raises when it is imported, or ImportError and AttributeError where nothing
            is found.
    """
    return entities_of(find_app(name))


def store_only(database_url: str) -> EntityCelery:
    """An EntityCelery of no user's app: enough to reach a store, with neither types nor a broker."""
    entities = EntityCelery()
    entities._app = Celery("entitycelery.store", broker="memory://", set_as_current=False)
    entities.override(database_url=database_url)
    return entities


def current_entities() -> EntityCelery:
    """The EntityCelery of the current app; else the one that was made last.

    Raises:
        ConfigurationError: There is none.
    """
    found = _by_app.get(current_app._get_current_object())  # type: ignore[attr-defined]
    if found is None and _latest:
        found = _latest[0]()
    if found is None:
        raise ConfigurationError("there is no EntityCelery yet: create one with EntityCelery(app) first")
    return found


def _current_port() -> Port:
    return current_entities()._port()
