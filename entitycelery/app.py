"""`EntityCelery`: entities on a Celery app. The composition root, the only place that names concrete parts."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from celery import Celery, current_app
from celery.app.utils import find_app
from celery.utils.imports import symbol_by_name
from kombu.exceptions import OperationalError

from entitycelery.address import parse_address
from entitycelery.asking import Asking
from entitycelery.attaching import EmbeddedDefault, attach
from entitycelery.calls import Prepared, Sent
from entitycelery.celery_tasks import TASKS_TYPE, tasks_entity
from entitycelery.client.client import Client
from entitycelery.client.definitions import Definitions
from entitycelery.controlling import Controlling
from entitycelery.declaring import Declaring
from entitycelery.entity import Entity
from entitycelery.entity_type import EntityType, OnFailure
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError
from entitycelery.parts import Parts, assemble, compose, settings_of
from entitycelery.port import Port, current_port, set_default_port
from entitycelery.ref import Ref
from entitycelery.registry import Registry, register_with, shared_registry
from entitycelery.runtime.host import Host
from entitycelery.scheduling import Scheduling
from entitycelery.settings import Settings
from entitycelery.shard_group import DEFAULT_GROUP, ShardGroup
from entitycelery.signalling import Signalling
from entitycelery.singletons import Singletons
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import shown
from entitycelery.task_answers import TaskAnswers
from entitycelery.transports.bell import Ringer
from entitycelery.workflows import Workflows

T = TypeVar("T", bound=Entity)

log = logging.getLogger("entitycelery.app")

_RESULT = "entitycelery.backend:entity_result"

_by_app: weakref.WeakKeyDictionary[Celery, EntityCelery] = weakref.WeakKeyDictionary()
_latest: list[weakref.ref[EntityCelery]] = []


class EntityCelery(Asking, Controlling, Signalling, Workflows, Scheduling, Declaring, Singletons):
    """Entities for one Celery app.

    Settings are Celery settings `entity_*`, read at first use. `EntityCelery()` and `init_app(app)` later serve
    applications that make their Celery app in a factory.
    """

    def __init__(self, app: Celery | None = None) -> None:
        super().__init__()
        self._app: Celery | None = None
        self._registry = Registry(shared_registry)
        self._overrides: dict[str, Any] = {}
        self._has_schema = False
        self._mutex = threading.RLock()
        self._parts: Parts | None = None
        self._embedded = EmbeddedDefault()
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
        sender = lambda *given, **options: self._composed().send_task(*given, **options)  # noqa: E731 - one line
        tasks = tasks_entity(sender, (OperationalError, OSError))
        group: ShardGroup = lambda _: self.settings.shard_groups[0]  # noqa: E731 - known when the settings are read
        register_with(self._registry, tasks, self._adopt, {"name": TASKS_TYPE, "shard_group": group})
        self._task_answers = TaskAnswers(app, self._port)
        attach(app)
        if app.configured:  # type: ignore[attr-defined]
            self._embed_where_nothing_is_configured()
        else:
            app.on_after_configure.connect(self._on_configured, weak=False)

    def _on_configured(self, **_: Any) -> None:
        self._embed_where_nothing_is_configured()

    def _embed_where_nothing_is_configured(self) -> None:
        self._overrides.update(self._embedded.configure(self.app.conf, self._overrides))

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
        shard_group: ShardGroup = DEFAULT_GROUP,
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
            shard_group: The group whose workers host its entities, or a function that gives it for an id.

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
        """The registered types, by name; without the library's own."""
        return [kind for kind in self._registry if kind.name != TASKS_TYPE]

    def _definitions(self) -> Definitions:
        parts = self._ready()
        return Definitions(parts.settings, parts.envelope, str(self.app.conf.get("timezone") or "UTC"))

    def _register_class(self, cls: type[Entity], name: str | None) -> None:
        self.register(name=name)(cls)

    def _register_workflow(self, cls: type[Entity], name: str) -> EntityType:
        self.register(name=name)(cls)
        return self._registry.get(name)

    def _register_function(self, cls: type[Entity], name: str, shard_group: str) -> None:
        self.register(name=name, shard_group=shard_group)(cls)

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
            if "database_url" in given and self._embedded.is_used:
                # The folder of the wake-ups lies beside the store.
                self._embed_where_nothing_is_configured()

    def migrate_if_allowed(self) -> bool:
        """Create or upgrade the schema where entity_auto_migrate allows it; whether it does."""
        allowed = self.settings.auto_migrate
        if allowed is None:
            allowed = self.store.url.get_backend_name() == "sqlite"
        if allowed:
            applied = self.store.schema.upgrade()
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
        self.store.schema.make_views(views)
        return names

    def close(self) -> None:
        """Give all connections back, once the wake-ups that are on their way have gone."""
        with self._mutex:
            parts, self._parts = self._parts, None
            self._has_schema = False
        if parts is not None:
            parts.host.bell.flush()
            parts.store.close()

    def read_settings(self) -> Settings:
        """The settings as they are given now, whether or not there is a store."""
        return settings_of(self.app, self._overrides)

    def assemble_on(
        self,
        settings: Settings,
        store: SqlStore,
        ringer: Ringer,
        client_of: Callable[..., Client],
        send_task: Callable[..., Any],
    ) -> Parts:
        """Parts of this app on another store, for `working_with`."""
        return assemble(self.app, self._registry, settings, store, ringer, self._async_result, client_of, send_task)

    @contextmanager
    def working_with(self, parts: Parts) -> Iterator[None]:
        """Have these parts do everything for a while, as tests want it."""
        with self._mutex:
            kept = self._parts, self._has_schema
            self._parts, self._has_schema = parts, True
        try:
            yield
        finally:
            with self._mutex:
                self._parts, self._has_schema = kept

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
