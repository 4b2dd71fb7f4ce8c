"""The drain: batches, order, and several drains of one shard that never do anything twice."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from entitycelery import EntityCelery
from entitycelery.address import ShardId, shard_of
from tests.client.support import SHARDS, Account, drain, rung_by
from tests.runtime.support import HOOKS, Puppet, make_puppets
from tests.storage.support import change

puppet = Puppet.ref


def version(entities: EntityCelery, name: str = "p") -> int:
    return entities.status(puppet(name)).version


def test_many_turns_of_one_entity_are_one_commit(store_url: str, cluster_name: str) -> None:
    entities = make_puppets(store_url, cluster_name, batch_budget_s=60, drain_budget_s=60)
    sent = entities.send_many([puppet("p").add.prepare(1) for _ in range(50)])

    assert drain(entities) == 50

    assert version(entities) == 1
    assert [one.result(timeout_s=5) for one in sent] == list(range(1, 51))
    entities.close()


def test_a_commit_has_at_most_as_many_turns_as_the_setting_says(store_url: str, cluster_name: str) -> None:
    entities = make_puppets(store_url, cluster_name, batch_size=10, batch_budget_s=60, drain_budget_s=60)
    entities.send_many([puppet("p").add.prepare(1) for _ in range(35)])

    assert drain(entities) == 35

    # Each commit bumps the version once.
    assert version(entities) == 4
    assert entities.state(puppet("p")).count == 35
    entities.close()


def test_a_finished_turn_does_not_wait_longer_for_its_commit_than_the_budget(store_url: str, cluster_name: str) -> None:
    entities = make_puppets(store_url, cluster_name, batch_budget_s=0.001)
    HOOKS["look"] = lambda self: threading.Event().wait(0.01) or len(entities.messages())
    entities.send_many([puppet("p").act.prepare("look") for _ in range(10)])

    drain(entities)

    # Looked at whenever a turn ends: the one that ends when the budget is over is part of that commit.
    assert version(entities) >= 5
    entities.close()


def test_a_drain_whose_time_is_over_gives_its_slot_back_and_says_that_there_is_more(
    store_url: str, cluster_name: str
) -> None:
    entities = make_puppets(store_url, cluster_name, batch_size=5, drain_budget_s=0.0001)
    entities.send_many([puppet("p").add.prepare(1) for _ in range(20)])
    [shard] = {message.shard for message in entities.messages()}

    drained = entities.host.drain(shard)

    assert (drained.turns, drained.more) == (5, True)
    assert drain(entities) == 15
    entities.close()


def test_mail_that_arrives_during_a_drain_is_handled_by_it(entities: EntityCelery) -> None:
    def send_outside() -> None:
        puppet("p").note.send("late")

    def arrive(self: Puppet) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(send_outside).result(30)

    HOOKS["arrive"] = arrive
    puppet("p").act.send("arrive")

    drain(entities)

    assert entities.state(puppet("p")).log == ["arrive", "late"]
    assert entities.messages() == []


def test_a_drain_rings_for_the_shards_that_its_turns_wrote_to(entities: EntityCelery) -> None:
    here, there, later = (name_in(shard) for shard in range(3))

    def write(self: Puppet) -> None:
        Account.ref(there).deposit.send(1)
        Account.ref(later).deposit.options(delay_s=60).send(1)

    HOOKS["write"] = write
    puppet(here).act.send("write")
    entities.host.bell.flush()
    rung = rung_by(entities)

    entities.host.drain(ShardId("default", 0))

    assert len(entities.messages()) == 2
    assert rung.shards == [ShardId("default", 1)]


def name_in(shard: int) -> str:
    """An entity id of this shard."""
    return next(name for name in map(str, range(1_000)) if shard_of("default", name, SHARDS).number == shard)


def test_several_drains_of_one_shard_at_once_double_nothing_and_keep_the_order(entities: EntityCelery) -> None:
    names = [f"p{number}" for number in range(8)]
    words = [f"{number}" for number in range(40)]
    sent = entities.send_many([puppet(name).note.prepare(word) for word in words for name in names])

    with ThreadPoolExecutor(4) as pool:
        turns = sum(pool.map(lambda _: drain(entities), range(4)))
    turns += drain(entities)

    assert turns == len(sent)
    for name in names:
        assert entities.state(puppet(name)).log == words
    assert entities.messages() == []


def test_drains_at_once_while_mail_comes_in_double_nothing(entities: EntityCelery) -> None:
    stop = threading.Event()

    def drain_on(_: int) -> int:
        turns = 0
        while not stop.is_set():
            turns += drain(entities)
        return turns

    def transfer(self: Puppet) -> None:
        self.count -= 1
        puppet("till").add.send(1)

    HOOKS["pay"] = transfer
    with ThreadPoolExecutor(7) as pool:
        drains = [pool.submit(drain_on, number) for number in range(3)]
        senders = [
            pool.submit(lambda name: [puppet(name).act.send("pay") for _ in range(25)], f"payer{n}") for n in range(4)
        ]
        for sender in senders:
            sender.result(60)
        stop.set()
        for one in drains:
            one.result(60)
    drain(entities)

    assert entities.state(puppet("till")).count == 100
    assert [entities.state(puppet(f"payer{n}")).count for n in range(4)] == [-25] * 4


def test_a_stale_drain_loses_and_its_messages_are_handled_again(entities: EntityCelery) -> None:
    attempts: list[str] = []

    def be_overtaken(self: Puppet) -> None:
        attempts.append("run")
        self.count += 1
        Account.ref("alice").deposit.send(1)
        if len(attempts) == 1:
            # Another writer that believed to hold the entity has committed meanwhile.
            change(entities.store, "UPDATE {state} SET version = version + 1 WHERE entity_id = 'p'")

    HOOKS["stale"] = be_overtaken
    puppet("p").add.send(10)
    drain(entities)
    sent = puppet("p").act.send("stale")
    other = puppet("other").add.send(1)

    drain(entities)

    assert attempts == ["run", "run"]
    assert sent.result(timeout_s=5) is None
    assert entities.state(puppet("p")).count == 11
    assert entities.state(Account.ref("alice")).balance == 1
    assert other.result(timeout_s=5) == 1


def test_a_message_that_is_gone_when_its_turn_ends_leaves_no_trace(entities: EntityCelery) -> None:
    def be_cancelled(self: Puppet) -> None:
        self.count += 1
        change(entities.store, "DELETE FROM {message} WHERE operation = 'act'")

    HOOKS["gone"] = be_cancelled
    puppet("p").act.send("gone")

    drain(entities)

    assert not entities.exists(puppet("p"))


def test_async_and_other_handlers_of_one_entity_keep_its_order(entities: EntityCelery) -> None:
    async def linger(self: Puppet) -> None:
        await asyncio.sleep(0.001)

    HOOKS["linger"] = linger
    expected = []
    for number in range(20):
        puppet("p").note.send(f"{number}")
        puppet("p").anote.send(f"async {number}")
        puppet("p").aact.send("linger")
        expected += [f"{number}", f"async {number}", "async linger"]

    drain(entities)

    assert entities.state(puppet("p")).log == expected


def test_async_handlers_of_one_entity_keep_its_order(entities: EntityCelery) -> None:
    for number in range(30):
        puppet("p").anote.send(f"{number}")

    drain(entities)

    assert entities.state(puppet("p")).log == [f"{number}" for number in range(30)]


def test_async_handlers_of_different_entities_run_at_the_same_time(entities: EntityCelery) -> None:
    arrived: list[str] = []
    everybody_is_here = asyncio.Event()

    async def meet(self: Puppet) -> int:
        arrived.append(self.turn.id)
        if len(arrived) == 10:
            everybody_is_here.set()
        # Each waits for all: one after the other they would wait for ever.
        await asyncio.wait_for(everybody_is_here.wait(), 20)
        return len(arrived)

    HOOKS["meet"] = meet
    sent = entities.send_many([puppet(n).aact.prepare("meet") for n in range(10)])

    drain(entities)

    assert [one.result(timeout_s=5) for one in sent] == [10] * 10


def test_an_async_handler_that_fails_fails_alone(entities: EntityCelery) -> None:
    async def fail(self: Puppet) -> None:
        self.count = 1000
        Account.ref("alice").deposit.send(5)
        await asyncio.sleep(0)
        raise LookupError("async")

    HOOKS["fail"] = fail
    failed, after = puppet("p").aact.send("fail"), puppet("p").anote.send("after")

    drain(entities)

    with pytest.raises(LookupError, match="async"):
        failed.result(timeout_s=5)
    assert after.result(timeout_s=5) is None
    assert entities.state(puppet("p")) == Puppet(log=["after"])
    assert not entities.exists(Account.ref("alice"))
