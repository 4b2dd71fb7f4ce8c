"""Apps: made before or after their entities, found from shared ones, and told what they lack."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app

from entitycelery import Entity, EntityCelery, handler, shared_entity
from entitycelery.address import Address
from entitycelery.app import entities_of
from entitycelery.exceptions import ConfigurationError, UnknownEntityType
from entitycelery.registry import shared_registry


def celery_app(**settings: Any) -> Celery:
    app = Celery("unit", broker="memory://", set_as_current=False)
    app.conf.update({"entity_database_url": "sqlite://", "entity_shards_per_group": 4, **settings})
    return app


@pytest.fixture
def entities() -> Iterator[EntityCelery]:
    """An app with a store in memory."""
    made = EntityCelery(celery_app())
    yield made
    made.close()


@pytest.fixture
def keep_current_app() -> Iterator[None]:
    before = current_app._get_current_object()
    yield
    before.set_current()


class SharedCounter(Entity):
    n: int = 0

    @handler
    def add(self, amount: int) -> int:
        self.n += amount
        return self.n


class SharedTally(Entity):
    n: int = 0

    @handler
    def add(self) -> None: ...


@pytest.fixture(autouse=True)
def shared_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared with every app, but only as long as a test of this file runs."""
    monkeypatch.setattr(shared_registry, "_types", dict(shared_registry._types))
    shared_entity(SharedCounter)
    shared_entity(name="shared-tally", aliases=("old-tally",), on_failure="block", mailbox_capacity=5)(SharedTally)


def test_an_app_made_by_a_factory_gets_the_entities_registered_before() -> None:
    entities = EntityCelery()

    @entities.register
    class Early(Entity):
        @handler
        def go(self) -> None: ...

    app = celery_app()
    entities.init_app(app)

    Early.ref("a").go.send()

    assert entities.app is app
    assert entities_of(app) is entities
    assert [message.operation for message in entities.messages()] == ["go"]
    entities.close()


def test_before_init_app_a_call_says_what_is_missing() -> None:
    entities = EntityCelery()

    @entities.register
    class Orphan(Entity):
        @handler
        def go(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"has no Celery app yet: call init_app\(app\)"):
        Orphan.ref("a").go.send()
    with pytest.raises(ConfigurationError, match="no Celery app yet"):
        entities.app


def test_one_app_has_one_entity_celery(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="has an EntityCelery already"):
        EntityCelery(entities.app)
    with pytest.raises(ConfigurationError, match="this EntityCelery has an app already"):
        entities.init_app(celery_app())


def test_an_app_without_entities_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"has no entities: create EntityCelery\(app\)"):
        entities_of(celery_app())


def test_an_empty_store_is_made_by_whoever_comes_first_even_to_read() -> None:
    for read in (
        lambda entities: entities.exists(SharedCounter.ref("a")),
        lambda entities: entities.status(SharedCounter.ref("a")).exists,
        lambda entities: entities.state(SharedCounter.ref("a")).n,
        lambda entities: entities.entities(),
        lambda entities: entities.messages(),
    ):
        entities = EntityCelery(celery_app())

        assert not read(entities)
        entities.close()


def test_shared_entities_belong_to_every_app(entities: EntityCelery) -> None:
    assert {"SharedCounter", "shared-tally"} <= {kind.name for kind in entities.types}
    assert entities.ref("SharedCounter/a") == SharedCounter.ref("a")
    # By its alias, too; messages then carry the present name.
    assert str(entities.ref("old-tally/a")) == "shared-tally/a"


@pytest.mark.usefixtures("keep_current_app")
def test_calls_of_shared_entities_go_to_the_current_app() -> None:
    first, second = EntityCelery(celery_app()), EntityCelery(celery_app())

    first.app.set_current()
    SharedCounter.ref("a").add.send(1)
    assert (len(first.messages()), len(second.messages())) == (1, 0)

    second.app.set_current()
    SharedCounter.ref("a").add.send(1)
    SharedCounter.ref("b").add.send(1)
    assert (len(first.messages()), len(second.messages())) == (1, 2)

    for entities in (first, second):
        entities.close()


def test_a_shared_entitys_state_is_read_from_the_app_that_is_asked(keep_current_app: None) -> None:
    asked, current = EntityCelery(celery_app()), EntityCelery(celery_app())
    asked.app.set_current()
    SharedCounter.ref("a").add.send(1)
    asked.host.drain(asked.envelope.shard(Address("SharedCounter", "a")))

    current.app.set_current()

    assert (asked.state(SharedCounter.ref("a")).n, current.state(SharedCounter.ref("a")).n) == (1, 0)
    asked.close()
    current.close()


def test_the_options_of_a_shared_entity_are_those_of_register() -> None:
    kind = SharedTally.__entity_type__

    assert kind is not None
    assert (kind.name, kind.on_failure, kind.mailbox_capacity) == ("shared-tally", "block", 5)


def test_only_entity_classes_are_registered(entities: EntityCelery) -> None:
    class NoEntity:
        pass

    for bad in (NoEntity, "Account", Entity()):
        with pytest.raises(ConfigurationError, match="an entity class derives from Entity"):
            entities.register(bad)  # type: ignore[call-overload]


def test_an_unknown_type_is_named_with_those_that_are_known(entities: EntityCelery) -> None:
    with pytest.raises(UnknownEntityType, match=r"no entity type 'Nobody' is registered.*SharedCounter"):
        entities.ref("Nobody/a")


def test_modules_named_entities_are_discovered_as_celery_discovers_tasks(
    entities: EntityCelery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("discovered_shop", "discovered_bank"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    source = "from entitycelery import Entity, shared_entity\n@shared_entity\nclass {}(Entity):\n    n: int = 0\n"
    (tmp_path / "discovered_shop" / "entities.py").write_text(source.format("DiscoveredShop"))
    (tmp_path / "discovered_bank" / "actors.py").write_text(source.format("DiscoveredBank"))
    monkeypatch.syspath_prepend(tmp_path)

    entities.autodiscover(["discovered_shop", "discovered_bank"])
    entities.autodiscover(["discovered_bank"], related_name="actors")
    assert "discovered_shop.entities" not in sys.modules
    entities.app.loader.import_default_modules()

    assert {"DiscoveredShop", "DiscoveredBank"} <= {kind.name for kind in entities.types}


def test_a_broker_without_a_store_is_refused_by_the_name_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENTITY_DATABASE_URL", raising=False)
    entities = EntityCelery(celery_app(entity_database_url=None))

    with pytest.raises(ConfigurationError, match="entity_database_url is not set"):
        entities.store


def test_without_broker_and_store_both_are_embedded_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENTITY_DATABASE_URL", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    entities = EntityCelery(Celery("bare", set_as_current=False))

    assert entities.database == f"sqlite:///{tmp_path}/.entitycelery/store.db"
    assert str(entities.app.conf.broker_transport).startswith("entitycelery.transports.folder")
    entities.close()


def test_a_bad_setting_stops_the_first_use_and_names_itself() -> None:
    entities = EntityCelery(celery_app(entity_batch_size="many"))

    with pytest.raises(ConfigurationError, match=r"entity_batch_size.*'many' from the setting entity_batch_size"):
        entities.settings


def test_the_password_of_the_store_is_not_shown() -> None:
    entities = EntityCelery(celery_app(entity_database_url="postgresql://me:secret@nowhere.invalid/db"))

    assert "secret" not in entities.database
    assert "secret" not in repr(entities.store)


def test_overrides_come_before_first_use(entities: EntityCelery) -> None:
    entities.override(batch_size=7, cluster=None)
    assert entities.settings.batch_size == 7
    assert entities.settings.cluster == "default"

    with pytest.raises(ConfigurationError, match="only before they are first used"):
        entities.override(batch_size=8)
