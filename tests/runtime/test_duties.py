"""The runner's duties that ring, each tick called by hand: for what, and for what not."""

from __future__ import annotations

import pytest

from entitycelery import EntityCelery
from entitycelery.address import ShardId
from entitycelery.worker.duties import DueMail, Sweep
from tests.client.support import Account, Rung, drain, rung_by, time_passes
from tests.runtime.support import HOOKS, Blocking, PassingError, Puppet

LONGER_THAN_AN_INTERVAL_S = 1_000.0


@pytest.fixture
def rung(entities: EntityCelery) -> Rung:
    return rung_by(entities)


def shards(entities: EntityCelery) -> list[ShardId]:
    """Where mail is pending, oldest first."""
    return [message.shard for message in entities.messages()]


def tick(entities: EntityCelery, rung: Rung, duty: Sweep | DueMail) -> list[ShardId]:
    """The shards that one tick rings for."""
    # What senders ring beside themselves comes first.
    entities.host.bell.flush()
    rung.shards.clear()
    duty.tick()
    return list(rung.shards)


def a_sweep(entities: EntityCelery) -> Sweep:
    return Sweep(entities.store, entities.host.bell, entities.settings)


def test_the_first_sweep_rings_for_everything_that_waits(entities: EntityCelery, rung: Rung) -> None:
    Account.ref("a").deposit.send(1)

    assert tick(entities, rung, a_sweep(entities)) == shards(entities)


def test_the_sweep_rings_for_mail_whose_wakeup_was_lost(entities: EntityCelery, rung: Rung) -> None:
    duty = a_sweep(entities)
    duty.tick()
    Account.ref("a").deposit.send(1)
    time_passes(entities, LONGER_THAN_AN_INTERVAL_S)
    Account.ref("b").deposit.send(1)
    [lost, young] = shards(entities)
    assert lost != young

    assert tick(entities, rung, duty) == [lost]


def test_the_sweep_rings_for_no_mail_behind_a_retry_that_blocks(entities: EntityCelery, rung: Rung) -> None:
    def fail(self: Puppet) -> None:
        raise PassingError

    HOOKS["fail"] = fail
    Blocking.ref("a").retry.send("fail")
    drain(entities)
    Blocking.ref("a").add.send(1)

    assert tick(entities, rung, a_sweep(entities)) == []


def test_delayed_mail_is_rung_for_when_it_is_due(entities: EntityCelery, rung: Rung) -> None:
    duty = DueMail(entities.store, entities.host.bell, entities.settings)
    Account.ref("a").deposit.options(delay_s=60).send(1)
    assert tick(entities, rung, duty) == tick(entities, rung, a_sweep(entities)) == []

    time_passes(entities, 60)

    assert tick(entities, rung, duty) == shards(entities)
