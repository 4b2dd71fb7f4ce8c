"""Which group an entity belongs to: what registration takes, what a call finds out, and who is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entitycelery import Entity, EntityCelery, shared_entity
from entitycelery.address import Address, ShardId, is_group_name, shard_of
from entitycelery.entity_type import EntityType
from entitycelery.envelope import Envelope
from entitycelery.exceptions import ConfigurationError, UnknownEntityType
from entitycelery.registry import Registry
from tests.naming import shown

BAD_NAMES = ["", "-gpu", "g p", "gpu.fast", "a,b", "größe", "x" * 101, "gpu\n"]


def entity_type(**options: Any) -> EntityType:
    return EntityType(type("Account", (Entity,), {}), **options)


def by_first_letter(entity_id: str) -> str:
    return f"letter-{entity_id[0]}"


def test_a_type_is_in_the_default_group_unless_it_says_otherwise() -> None:
    assert entity_type().group_of("alice") == "default"
    assert entity_type(shard_group="gpu").group_of("alice") == "gpu"


def test_a_function_chooses_the_group_of_each_id() -> None:
    kind = entity_type(shard_group=by_first_letter)

    assert (kind.group_of("alice"), kind.group_of("bob")) == ("letter-a", "letter-b")
    assert kind.constant_group is None


@pytest.mark.parametrize("name", ["gpu", "GPU_2", "2nd", "a-b", "_", "x" * 100])
def test_a_good_name_is_taken(name: str) -> None:
    assert is_group_name(name)
    assert entity_type(shard_group=name).constant_group == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_at_registration(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Account: shard_group names a group by letters, digits, '_' and '-'"):
        entity_type(shard_group=name)


async def asynchronous(entity_id: str) -> str:
    return entity_id


@pytest.mark.parametrize(
    "given", [None, 7, b"gpu", ("gpu",), lambda: "gpu", lambda one, two: "gpu", asynchronous], ids=shown
)
def test_what_is_neither_a_name_nor_a_function_of_an_id_is_refused_at_registration(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="Account: shard_group is the name of a group or a plain function"):
        entity_type(shard_group=given)


@pytest.mark.parametrize("result", [*BAD_NAMES, None, 7, b"gpu", ["gpu"]], ids=repr)
def test_what_a_function_gives_is_checked_at_the_call(result: Any) -> None:
    kind = entity_type(shard_group=lambda entity_id: result)

    with pytest.raises(ConfigurationError, match=r"Account: shard_group\('alice'\) names a group by letters"):
        kind.group_of("alice")


def test_a_function_that_fails_is_a_sentence_that_says_for_whom() -> None:
    def broken(entity_id: str) -> str:
        raise LookupError("no such tenant")

    with pytest.raises(ConfigurationError, match=r"shard_group\('alice'\) failed: LookupError: no such tenant"):
        entity_type(shard_group=broken).group_of("alice")


def test_builtins_and_bound_methods_are_functions_too() -> None:
    groups = {"alice": "blue"}

    assert entity_type(shard_group=groups.__getitem__).group_of("alice") == "blue"
    assert entity_type(shard_group=str).group_of("alice") == "alice"


# Who is asked: the registry


def envelope(registry: Registry, shards: Callable[[], int] = lambda: 8) -> Envelope:
    return Envelope("c", None, shards_per_group=shards, group_of=registry.group_of)


def test_an_envelope_asks_the_type_by_its_name_and_by_its_aliases() -> None:
    registry = Registry()
    registry.add(entity_type(shard_group="gpu", aliases=("Konto",)))

    assert envelope(registry).shard(Address("Account", "alice")) == shard_of("gpu", "alice", 8)
    assert envelope(registry).shard(Address("Konto", "alice")) == shard_of("gpu", "alice", 8)


def test_an_unknown_type_has_no_shard_unless_its_group_is_known() -> None:
    asked = envelope(Registry())

    with pytest.raises(UnknownEntityType, match="'Account'"):
        asked.shard(Address("Account", "alice"))
    assert asked.shard_in("gpu", Address("Account", "alice")) == shard_of("gpu", "alice", 8)


def test_an_envelope_asks_for_the_number_of_shards_each_time() -> None:
    registry = Registry()
    registry.add(entity_type())
    numbers = iter([8, 1])
    asked = envelope(registry, lambda: next(numbers))

    assert asked.shard(Address("Account", "alice")) == shard_of("default", "alice", 8)
    assert asked.shard(Address("Account", "alice")) == ShardId("default", 0)


def test_apps_and_shared_types_take_a_group() -> None:
    entities = EntityCelery()

    @entities.register(shard_group="gpu")
    class Rendering(Entity):
        pass

    @shared_entity(shard_group=by_first_letter)
    class SharedRendering(Entity):
        pass

    groups = {kind.name: kind.group_of("alice") for kind in entities.types if kind.cls in (Rendering, SharedRendering)}
    assert groups == {"Rendering": "gpu", "SharedRendering": "letter-a"}
