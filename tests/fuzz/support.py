"""A box that takes anything, and the proof that nothing is wedged: others of the same shard are still served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entitycelery import Entity, EntityCelery, handler
from entitycelery.address import Address, shard_of
from entitycelery.exceptions import EntityError
from tests.client.support import SHARDS, drain, make_entities
from tests.storage.support import change, query

MISCHIEF: dict[str, Callable[[Any], Any]] = {}
"""What `Box.act(name)` does, by name; in this process only."""


class Box(Entity):
    content: object = None
    count: int = 0

    @handler
    def put(self, value: object) -> None:
        self.content = value

    @handler
    def echo(self, value: object) -> object:
        return value

    @handler
    def act(self, mischief: str) -> object:
        self.count += 1
        return MISCHIEF[mischief](self)

    @handler(autoretry_for=(LookupError,), max_retries=3, retry_backoff=60, retry_jitter=False)
    def retry(self, mischief: str) -> object:
        return MISCHIEF[mischief](self)

    @handler
    def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count


def make_boxes(url: str, cluster: str, **settings: Any) -> EntityCelery:
    entities = make_entities(url, cluster, **settings)
    entities.register(Box)
    return entities


def empty(entities: EntityCelery) -> None:
    """Everything that a test may have left in the store, or taken away."""
    for table in ("message", "reply", "state", "dead_letter", "in_flight"):
        change(entities.store, f"DELETE FROM {{{table}}}")  # noqa: S608 - constants
    change(
        entities.store,
        "INSERT INTO {meta} (name, value) VALUES ('shards_per_group', :shards) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        shards=str(SHARDS),
    )


def neighbour_of(entity_id: str) -> str:
    """The id of another entity of the same shard."""
    shard = shard_of("default", entity_id, SHARDS)
    return next(name for n in range(1000) if shard_of("default", name := f"neighbour-{n}", SHARDS) == shard)


def assert_served(entities: EntityCelery, entity_id: str) -> None:
    """A normal message to that entity, and one to another of its shard, are handled, and nothing is left behind."""
    own = Box.ref(entity_id).add.send(1)
    other = Box.ref(neighbour_of(entity_id)).add.send(1)

    drain(entities)

    assert isinstance(own.result(timeout_s=0), int)
    assert isinstance(other.result(timeout_s=0), int)
    assert pending(entities) == []


def pending(entities: EntityCelery) -> list[tuple[Any, ...]]:
    return query(entities.store, "SELECT id, type, entity_id, operation FROM {message}")


def failure_of(entities: EntityCelery, message_id: str) -> tuple[str, str, str]:
    """Status, reason and sentence of a message that did not succeed."""
    reply = entities.reply(message_id)
    assert reply is not None, f"{message_id} is still pending"
    assert reply.failure is not None, f"{message_id} is {reply.status} with {reply.result!r:.80}"
    return reply.status.value, reply.failure.reason, reply.failure.message


def assert_sentence(error: BaseException | str) -> None:
    """An error of our own tree that says something in one line of bearable length."""
    assert isinstance(error, EntityError | str), f"{type(error).__name__} is none of ours: {error!r:.300}"
    text = str(error)
    assert text.strip()
    assert "\n" not in text, repr(text[:400])
    assert len(text) < 4_000, repr(text[:400])


def set_message(entities: EntityCelery, message_id: str, **columns: Any) -> None:
    """Edit a row of `message` by hand."""
    _set(entities, "message", columns, {"id": message_id})


def set_state(entities: EntityCelery, address: Address, **columns: Any) -> None:
    """Edit a row of `state` by hand."""
    _set(entities, "state", columns, {"type": address.type, "entity_id": address.id})


def set_reply(entities: EntityCelery, message_id: str, **columns: Any) -> None:
    """Edit a row of `reply` by hand."""
    _set(entities, "reply", columns, {"id": message_id})


def _set(entities: EntityCelery, table: str, columns: dict[str, Any], where: dict[str, Any]) -> None:
    assigned = ", ".join(f"{name} = :{name}_new" for name in columns)
    found = " AND ".join(f"{name} = :{name}" for name in where)
    values = {f"{name}_new": value for name, value in columns.items()}
    change(entities.store, f"UPDATE {{{table}}} SET {assigned} WHERE {found}", **values, **where)  # noqa: S608
