"""Shard groups: whatever stores a message puts it into the shard that its type says, and reading looks there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from celery import Celery
from sqlalchemy import create_engine

from entitycelery import Entity, EntityCelery, handler
from entitycelery.address import ShardId, shard_of
from entitycelery.exceptions import ConfigurationError, UnknownEntityType
from entitycelery.message import PendingMessage
from tests.client.support import SHARDS, make_entities, rung_by
from tests.waiting import eventually


def tenant(entity_id: str) -> str:
    return entity_id.partition("-")[0]


class Rendering(Entity):
    frames: int = 0

    @handler
    def render(self, frames: int = 1) -> int:
        self.frames += frames
        return self.frames

    @handler
    def render_elsewhere(self, to: str) -> None:
        Order.ref(to).place.send()
        Rendering.ref(to).render.options(key="once").send()

    @handler(autoretry_for=(OSError,), max_retries=0)
    def fail(self) -> None:
        raise OSError("no such card")


class Order(Entity):
    placed: int = 0

    @handler
    def place(self) -> int:
        self.placed += 1
        return self.placed


@pytest.fixture
def grouped(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    entities = make_entities(store_url, cluster_name)
    entities.register(shard_group="gpu", aliases=("Film",))(Rendering)
    entities.register(shard_group=tenant)(Order)
    yield entities
    entities.close()


def pending(entities: EntityCelery) -> list[PendingMessage]:
    return entities.messages(limit=1_000)


def drain_group(entities: EntityCelery, group: str) -> int:
    return entities.host.drain(*(ShardId(group, number) for number in range(SHARDS))).turns


def in_group(group: str, entity_id: str) -> ShardId:
    return shard_of(group, entity_id, SHARDS)


def test_every_way_to_send_stores_in_the_types_shard(grouped: EntityCelery) -> None:
    movie = Rendering.ref("movie")
    engine = create_engine(grouped.store.url)

    movie.render.send()
    movie.render.options(key="a key").send()
    movie.render.options(delay_s=60).send()
    movie.render.delay()
    movie.render.apply_async((1,), task_id="a task id")
    asyncio.run(movie.render.asend())
    grouped.send_many([movie.render.prepare(), movie.render.prepare()])
    grouped.ref("Film/movie").render.send()
    grouped.delete(movie)
    with engine.begin() as connection:
        movie.render.options(connection=connection).send()
    engine.dispose()

    stored = pending(grouped)
    assert len(stored) == 11
    assert {message.shard for message in stored} == {in_group("gpu", "movie")}


def test_a_function_puts_each_entity_into_its_own_group(grouped: EntityCelery) -> None:
    for entity_id in ("acme-1", "acme-2", "umbrella-1"):
        Order.ref(entity_id).place.send()

    assert [message.shard for message in pending(grouped)] == [
        in_group("acme", "acme-1"),
        in_group("acme", "acme-2"),
        in_group("umbrella", "umbrella-1"),
    ]
    assert grouped.shard_of(Order.ref("umbrella-1")) == in_group("umbrella", "umbrella-1")


def test_a_bad_group_stores_nothing_and_says_whose_function_it_is(grouped: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match=r"Order: shard_group\('\+1'\) names a group by letters"):
        Order.ref("+1").place.send()
    with pytest.raises(ConfigurationError, match="Order: shard_group"):
        grouped.send_many([Order.ref("acme-1").place.prepare(), Order.ref("+1").place.prepare()])

    assert pending(grouped) == []


def test_sends_inside_a_turn_go_to_the_receivers_groups_and_ring_there(grouped: EntityCelery) -> None:
    Rendering.ref("movie").render_elsewhere.send("acme-1")
    rung = rung_by(grouped)

    assert drain_group(grouped, "gpu") >= 1

    left = {(str(m.address), m.shard) for m in pending(grouped)}
    assert ("Order/acme-1", in_group("acme", "acme-1")) in left
    assert in_group("acme", "acme-1") in rung.shards
    assert drain_group(grouped, "acme") == 1
    drain_group(grouped, "gpu")
    assert (grouped.state(Order.ref("acme-1")).placed, grouped.state(Rendering.ref("acme-1")).frames) == (1, 1)


def test_a_bad_group_inside_a_turn_fails_the_turn(grouped: EntityCelery) -> None:
    sent = Rendering.ref("movie").render_elsewhere.send("+1")

    drain_group(grouped, "gpu")

    with pytest.raises(ConfigurationError, match=r"Order: shard_group\('\+1'\)"):
        sent.result(timeout_s=1)


def test_a_drain_of_another_group_finds_nothing(grouped: EntityCelery) -> None:
    Rendering.ref("movie").render.send()

    assert drain_group(grouped, "default") == 0
    assert drain_group(grouped, "gpu") == 1


def test_status_and_messages_look_into_the_types_shard(grouped: EntityCelery) -> None:
    movie = Rendering.ref("movie")
    movie.render.send()

    assert grouped.status(movie).pending == 1
    assert [message.id for message in grouped.messages(movie)] == [message.id for message in pending(grouped)]


def test_a_delay_that_has_passed_rings_for_the_types_shard(grouped: EntityCelery) -> None:
    sent = Rendering.ref("movie").render.options(delay_s=60).send()
    rung = rung_by(grouped)

    grouped.reschedule(sent, delay_s=0)

    assert rung.shards == [in_group("gpu", "movie")]


def test_a_dead_letter_is_retried_in_its_group(grouped: EntityCelery) -> None:
    sent = Rendering.ref("movie").fail.send()
    drain_group(grouped, "gpu")
    rung = rung_by(grouped)

    assert grouped.retry_dead(sent.id) == [sent.id]

    assert [message.shard for message in pending(grouped)] == [in_group("gpu", "movie")]
    assert eventually(lambda: rung.shards) == [in_group("gpu", "movie")]


def test_mail_of_a_type_that_is_not_known_here_is_controlled_by_what_its_row_says(
    grouped: EntityCelery, store_url: str, cluster_name: str
) -> None:
    [kept, cancelled] = [Rendering.ref(entity_id).render.send() for entity_id in ("movie", "clip")]
    stranger = make_entities(store_url, cluster_name)

    assert {m.shard for m in stranger.messages()} == {in_group("gpu", "movie"), in_group("gpu", "clip")}
    assert stranger.cancel(cancelled.id).outcome == "cancelled"
    assert stranger.reschedule(kept.id, delay_s=0).outcome == "rescheduled"
    assert drain_group(stranger, "gpu") == 1  # put off, for somebody who knows the type
    assert [m.attempt for m in stranger.messages()] == [0]
    with pytest.raises(UnknownEntityType):
        stranger.ref("Rendering/movie")
    stranger.close()


def test_a_turn_cannot_send_to_a_type_that_its_app_does_not_know(grouped: EntityCelery, sqlite_url: str) -> None:
    class Sender(Entity):
        @handler
        def send_abroad(self) -> None:
            Abroad.ref("x").touch.send()

    class Abroad(Entity):
        @handler
        def touch(self) -> None: ...

    grouped.register(Sender)
    abroad = EntityCelery(Celery("abroad", broker="memory://", set_as_current=False))
    abroad.register(Abroad)
    sent = Sender.ref("x").send_abroad.send()

    drain_group(grouped, "default")

    with pytest.raises(UnknownEntityType, match="no entity type 'Abroad' is registered with this app"):
        sent.result(timeout_s=1)
