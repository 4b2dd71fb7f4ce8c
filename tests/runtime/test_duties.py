"""The runner's duties that ring, each tick called by hand: for what, and for what not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from entitycelery import EntityCelery
from entitycelery.address import ShardId
from entitycelery.worker import duties
from entitycelery.worker.due_mail import DueMail
from entitycelery.worker.duties import CleanUp, Duty, FreshSweep, Sweep
from tests.client.support import SHARDS, Account, drain, time_passes
from tests.runtime.support import HOOKS, Blocking, PassingError, Puppet
from tests.storage.support import query

LONGER_THAN_AN_INTERVAL_S = 1_000.0


class Hosted:
    """A runner that holds all shards but those that it does not, and writes down for which it wakes its worker."""

    def __init__(self) -> None:
        self.held = frozenset(ShardId("default", number) for number in range(SHARDS))
        self.fresh: frozenset[ShardId] = frozenset()
        self.is_first = True
        self.moved = 0
        self.woken: list[ShardId] = []

    def settle_moved(self) -> None: ...

    def wake(self, shards: Sequence[ShardId]) -> None:
        self.woken += shards


@pytest.fixture
def hosted() -> Hosted:
    return Hosted()


def shards(entities: EntityCelery) -> list[ShardId]:
    """Where mail is pending, oldest first."""
    return [message.shard for message in entities.messages()]


def tick(hosted: Hosted, duty: Duty) -> list[ShardId]:
    """The shards that one tick rings for."""
    hosted.woken.clear()
    duty.tick()
    return list(hosted.woken)


def a_sweep(entities: EntityCelery, hosted: Hosted) -> Sweep:
    return Sweep(entities.store, hosted, entities.settings)


def test_the_sweep_leaves_other_runners_shards_to_them(entities: EntityCelery, hosted: Hosted) -> None:
    Account.ref("a").deposit.send(1)
    Account.ref("b").deposit.send(1)
    time_passes(entities, LONGER_THAN_AN_INTERVAL_S)
    [ours, theirs] = shards(entities)
    assert ours != theirs

    hosted.held -= {theirs}

    assert tick(hosted, a_sweep(entities, hosted)) == [ours]


def test_mail_in_shards_that_were_taken_just_now_is_rung_for_at_once(entities: EntityCelery, hosted: Hosted) -> None:
    duty = FreshSweep(entities.store, hosted, entities.settings)
    Account.ref("a").deposit.send(1)
    Account.ref("b").deposit.send(1)
    [taken, held] = shards(entities)
    assert taken != held

    assert tick(hosted, duty) == []
    hosted.fresh = frozenset({taken})
    assert tick(hosted, duty) == [taken]


def test_the_sweep_rings_for_mail_whose_wakeup_was_lost(entities: EntityCelery, hosted: Hosted) -> None:
    duty = a_sweep(entities, hosted)
    Account.ref("a").deposit.send(1)
    time_passes(entities, LONGER_THAN_AN_INTERVAL_S)
    Account.ref("b").deposit.send(1)
    [lost, young] = shards(entities)
    assert lost != young

    assert tick(hosted, duty) == [lost]


def test_the_sweep_rings_for_mail_that_was_sent_before_the_clock_was_stepped_back(
    entities: EntityCelery, hosted: Hosted
) -> None:
    duty = a_sweep(entities, hosted)
    Account.ref("a").deposit.send(1)
    time_passes(entities, -LONGER_THAN_AN_INTERVAL_S)

    assert tick(hosted, duty) == shards(entities)


def test_the_sweep_rings_for_no_mail_behind_a_retry_that_blocks(entities: EntityCelery, hosted: Hosted) -> None:
    def fail(self: Puppet) -> None:
        raise PassingError

    HOOKS["fail"] = fail
    Blocking.ref("a").retry.send("fail")
    drain(entities)
    Blocking.ref("a").add.send(1)
    time_passes(entities, 5.0)

    assert tick(hosted, a_sweep(entities, hosted)) == []


def test_delayed_mail_is_rung_for_when_it_is_due(entities: EntityCelery, hosted: Hosted) -> None:
    duty = DueMail(entities.store, hosted, entities.settings)
    Account.ref("a").deposit.options(delay_s=60).send(1)
    assert tick(hosted, duty) == tick(hosted, a_sweep(entities, hosted)) == []

    time_passes(entities, 60)

    assert tick(hosted, duty) == shards(entities)


def test_old_replies_are_removed_in_batches_between_which_others_have_their_turn(
    entities: EntityCelery, hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "_PURGE_BATCH", 2)
    sent = [Account.ref(f"a{n}").deposit.send(1) for n in range(5)]
    drain(entities)
    time_passes(entities, entities.settings.reply_retention_s)
    duty = CleanUp(entities.store, hosted, entities.settings)

    pauses_s = [duty.tick() for _ in range(3)]

    assert pauses_s[:2] == [0.0, 0.0]
    assert pauses_s[2] >= entities.settings.refresh_interval_s
    assert entities.store.replies([one.id for one in sent]) == {}


def test_the_first_runner_removes_the_rows_of_keys_whose_time_is_over(entities: EntityCelery, hosted: Hosted) -> None:
    for key, seconds in (("short", 60), ("long", 6_000)):
        Account.ref("a").deposit.options(key=key, unique="reject", unique_for_s=seconds).send(1)
    time_passes(entities, LONGER_THAN_AN_INTERVAL_S)
    count = "SELECT count(*) FROM {unique_key}"

    hosted.is_first = False
    tick(hosted, CleanUp(entities.store, hosted, entities.settings))
    assert query(entities.store, count) == [(2,)]

    hosted.is_first = True
    tick(hosted, CleanUp(entities.store, hosted, entities.settings))
    assert query(entities.store, count) == [(1,)]
