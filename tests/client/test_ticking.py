"""An entity that exists once and ticks: a schedule of its own, and the state, upgrades and order of every entity."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import ConfigurationError
from tests.client.support import drain, make_entities
from tests.client.test_schedules import moved_back, ticker


@pytest.fixture
def entities(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    made = make_entities(store_url, cluster_name)
    yield made
    made.close()


def test_an_entity_ticks_once_at_each_interval_and_keeps_its_state(entities: EntityCelery) -> None:
    @entities.singleton(every_s=10)
    class Poller(Entity):
        ticks: list[datetime] = []

        @handler
        def tick(self, scheduled_at: datetime) -> None:
            self.ticks.append(scheduled_at)

    entities.store_schedules()
    [before] = entities.singletons()
    moved_back(entities, "Poller/singleton.tick", 30)
    for _ in range(2):
        ticker(entities).run()
        drain(entities)

    ticks = entities.state(Poller.ref("singleton")).ticks
    assert len(ticks) in (3, 4)
    assert all(later - earlier == timedelta(seconds=10) for earlier, later in pairwise(ticks))
    [after] = entities.singletons()
    assert (before.kind, before.name, before.healthy, before.heartbeat_at) == ("tick", "Poller", False, None)
    assert after.heartbeat_at is not None
    assert datetime.now(UTC) - after.heartbeat_at < timedelta(minutes=1)
    # Nobody hosts its shard here.
    assert (after.holder, after.healthy, after.heartbeat_interval_s) == (None, False, 10)


def test_a_registered_class_can_tick_too(entities: EntityCelery) -> None:
    @entities.singleton(every_s=timedelta(minutes=1))
    @entities.register(name="house-keeper", state_version=1)
    class Keeper(Entity):
        runs: int = 0

        @handler
        def tick(self) -> None:
            self.runs += 1

    entities.store_schedules()
    entities.trigger_schedule("house-keeper/singleton.tick")
    drain(entities)

    assert entities.state(Keeper.ref("singleton")).runs == 1
    assert [one.name for one in entities.singletons()] == ["house-keeper"]


def test_a_class_that_cannot_tick_is_refused(entities: EntityCelery) -> None:
    class Silent(Entity):
        runs: int = 0

    with pytest.raises(ConfigurationError, match="needs a handler `tick`"):
        entities.singleton(every_s=5)(Silent)
    with pytest.raises(ConfigurationError, match="takes every_s= and perhaps name=, got nothing"):
        entities.singleton(Silent)
    with pytest.raises(ConfigurationError, match="got every_s, on_become_leader"):
        entities.singleton(every_s=5, on_become_leader=print)(Silent)  # type: ignore[call-overload]


def test_an_interval_that_is_too_short_is_refused_when_it_is_stored(entities: EntityCelery) -> None:
    @entities.singleton(every_s=0.5)
    class Hasty(Entity):
        @handler
        def tick(self) -> None: ...

    with pytest.raises(ConfigurationError, match="every_s must be from 1"):
        entities.store_schedules()


def test_an_entity_that_ticks_is_neither_moved_nor_restarted(entities: EntityCelery) -> None:
    @entities.singleton(every_s=5)
    class Poller(Entity):
        @handler
        def tick(self) -> None: ...

    with pytest.raises(ConfigurationError, match="Poller is an entity that ticks, so it cannot be moved"):
        entities.move_singleton("Poller")
    with pytest.raises(ConfigurationError, match="Poller is an entity that ticks, so it cannot be restarted"):
        entities.restart_singleton("Poller")
