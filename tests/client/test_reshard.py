"""A reshard as an app's processes live through it: those that were there go on, those that begin are told."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import create_engine

from entitycelery import EntityCelery
from entitycelery.address import Address, ShardId, shard_of
from entitycelery.exceptions import ConfigurationError
from tests.client.support import SHARDS, Account, Rung, make_entities, rung_by, serving
from tests.storage.support import change

NEW = 7
NAMES = [f"a{n}" for n in range(12)]


@pytest.fixture
def lived(entities: EntityCelery) -> EntityCelery:
    """An app that has sent with the old number; somebody else has changed it since."""
    for name in NAMES:
        Account.ref(name).deposit.send(1)
    # As another process does it: this one's parts do not hear of it.
    entities._composed().resharder.reshard(NEW)
    assert entities.envelope.shard(Address("Account", "a0")) == shard_of("default", "a0", SHARDS)
    return entities


def misplaced(entities: EntityCelery) -> list[str]:
    return [str(m.address) for m in entities.messages(limit=1_000) if m.shard != shard_of("default", m.address.id, NEW)]


def drain(entities: EntityCelery) -> int:
    turns = 0
    while done := entities.host.drain(*(ShardId("default", number) for number in range(NEW))).turns:
        turns += done
    return turns


def test_every_way_to_send_goes_on_with_the_new_number(lived: EntityCelery) -> None:
    engine = create_engine(lived.store.url)

    Account.ref("plain").deposit.send(1)
    Account.ref("plain").deposit.send(1)
    Account.ref("keyed").deposit.options(key="k").send(1)
    Account.ref("keyed").deposit.options(key="k").send(1)
    Account.ref("later").deposit.options(delay_s=60).send(1)
    asyncio.run(Account.ref("asynchronous").deposit.asend(1))
    lived.send_many([Account.ref(name).deposit.prepare(1) for name in NAMES])
    lived.delete(Account.ref("gone"))
    with engine.begin() as connection:
        Account.ref("mine").deposit.options(connection=connection).send(1)
    engine.dispose()

    assert len(lived.messages(limit=100)) == 2 * len(NAMES) + 7
    assert misplaced(lived) == []
    assert lived.store.shards_per_group == NEW


def test_the_first_send_afterwards_rings_for_the_new_shard_and_no_other(lived: EntityCelery) -> None:
    # What was sent before may have its second wake-up still to come.
    lived.host.bell.flush()
    rung = rung_by(lived)
    name = next(n for n in map(str, range(1_000)) if shard_of("default", n, NEW) != shard_of("default", n, SHARDS))

    Account.ref(name).deposit.send(1)

    # A send so soon after another one is rung beside it.
    lived.host.bell.flush()
    assert rung.shards == [shard_of("default", name, NEW)]


def test_reading_goes_on_before_anything_is_sent(lived: EntityCelery) -> None:
    assert [lived.status(Account.ref(name)).pending for name in NAMES] == [1] * len(NAMES)


def test_messages_of_an_entity_are_found_before_anything_is_sent(lived: EntityCelery) -> None:
    assert [len(lived.messages(Account.ref(name))) for name in NAMES] == [1] * len(NAMES)


def test_placement_is_asked_by_the_new_number_before_anything_is_sent(lived: EntityCelery) -> None:
    assert lived.owner_of(Account.ref("a0")) is None
    assert lived.shard_of(Account.ref("a0")) == shard_of("default", "a0", NEW)
    assert [one.shard for one in lived.shards()] == [ShardId("default", number) for number in range(NEW)]


def test_all_that_waited_is_handled_and_asks_are_answered(lived: EntityCelery) -> None:
    assert drain(lived) == len(NAMES)

    assert [lived.state(Account.ref(name)).balance for name in NAMES] == [1] * len(NAMES)


def test_an_ask_that_waits_while_the_number_changes_is_answered(entities: EntityCelery) -> None:
    sent = Account.ref("patient").deposit.send(5)
    entities.reshard(NEW)

    assert drain(entities) == 1

    assert sent.result(timeout_s=5) == 5


def test_a_retried_letter_goes_to_its_new_shard_and_is_rung_for(entities: EntityCelery, rung: Rung) -> None:
    name = "indebted"
    sent = Account.ref(name).deposit.send(1)
    entities.host.drain(*(ShardId("default", number) for number in range(SHARDS)))
    assert sent.result(timeout_s=1) == 1
    letter = Account.ref(name).deposit.send(2)
    _bury(entities)
    entities.reshard(NEW)
    rung.shards.clear()

    assert entities.retry_dead(letter.id) == [letter.id]

    assert misplaced(entities) == []
    assert rung.shards == [shard_of("default", name, NEW)]


@pytest.fixture
def rung(entities: EntityCelery) -> Rung:
    return rung_by(entities)


def _bury(entities: EntityCelery) -> None:
    """Have all pending messages be dead letters, as if each had ended its process too often."""
    change(entities.store, "UPDATE {message} SET crashes = 99")
    while entities.messages():
        entities.host.drain(*(ShardId("default", number) for number in range(SHARDS)))


def test_an_app_that_begins_with_the_old_number_is_told_both(
    lived: EntityCelery, store_url: str, cluster_name: str
) -> None:
    with pytest.raises(ConfigurationError, match="has 7 shards per group, entity_shards_per_group says 4"):
        make_entities(store_url, cluster_name)


def test_an_app_that_begins_with_the_old_number_and_checks_no_schema_is_told_both_when_it_sends(
    lived: EntityCelery, store_url: str, cluster_name: str
) -> None:
    late = make_entities(store_url, cluster_name, auto_migrate=False)

    with pytest.raises(ConfigurationError, match="has 7 shards per group, entity_shards_per_group says 4"):
        Account.ref("a0").deposit.send(1)

    assert len(lived.messages(limit=100)) == len(NAMES)
    late.close()


def test_an_app_that_begins_with_the_new_number_works(lived: EntityCelery, store_url: str, cluster_name: str) -> None:
    new = make_entities(store_url, cluster_name, shards_per_group=NEW)

    with serving(new):
        assert Account.ref("a0").deposit.ask(1) == 2
    new.close()


@pytest.mark.parametrize("number", [0, -1])
def test_a_group_has_at_least_one_shard(entities: EntityCelery, number: int) -> None:
    for change_it in (entities.plan_reshard, entities.reshard):
        with pytest.raises(ConfigurationError, match=f"at least 1 shard, got {number}"):
            change_it(number)
