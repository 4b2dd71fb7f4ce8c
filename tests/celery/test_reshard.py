"""Another number of shards with real workers and brokers: what waits is handled, and no queue is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from kombu import Connection

from entitycelery.address import ShardId, queue_name
from entitycelery.exceptions import ConfigurationError
from tests.celery.banks import BROKERS, Bank
from tests.celery.conftest import OpenBank
from tests.waiting import eventually

SHARDS, FEWER = 4, 2
NAMES = [f"a{n}" for n in range(16)]


def queues(bank: Bank) -> set[int]:
    """The shards of which the broker has a queue, whatever else it keeps of one."""
    cluster = bank.conf["entity_cluster"]
    names = {queue_name(cluster, ShardId("default", number)): number for number in range(2 * SHARDS)}
    with bank.app.connection_for_read() as connection:
        kind = connection.transport.driver_type
    if kind == "folder":
        folder = Path(f"{bank.folder}/entities.db.broker/queues")
        return {names[path.name] for path in folder.iterdir() if path.name in names}
    if kind == "redis":
        with redis.Redis.from_url(bank.conf["broker_url"]) as database:
            # Behind this character kombu writes a priority.
            keys = [key.decode().partition("\x06")[0] for key in database.keys(f"*entity.{cluster}.*")]
        return {number for name, number in names.items() if any(key.endswith(name) for key in keys)}
    return {number for name, number in names.items() if _is_declared(bank.conf["broker_url"], name)}


def _is_declared(url: str, name: str) -> bool:
    with Connection(url) as connection:
        try:
            connection.default_channel.queue_declare(name, passive=True)
        except connection.channel_errors:
            return False
    return True


@pytest.mark.parametrize("broker", BROKERS)
def test_fewer_shards_take_over_what_waits_and_leave_no_queue(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=SHARDS)
    worker = bank.worker()
    assert bank.Account.ref("a0").deposit.ask(1) == 1
    with pytest.raises(ConfigurationError, match=rf"stop {worker.node} \(pid {worker.pid} on "):
        bank.entities.reshard(FEWER)
    assert worker.stop() == 0
    assert bank.entities.runners() == []
    for name in NAMES:
        bank.Account.ref(name).deposit.send(1)

    done = bank.entities.reshard(FEWER)

    assert (done.before, done.after, len(done.queues)) == (SHARDS, FEWER, SHARDS - FEWER)
    assert queues(bank) <= set(range(FEWER))
    old = bank.start_worker()
    assert old.exit_code() != 0
    assert f"the store has {FEWER} shards per group, entity_shards_per_group says {SHARDS}" in old.log()
    bank.worker(entity_shards_per_group=FEWER)
    eventually(lambda: bank.pending() == 0)
    assert [bank.Account.ref(name).statement() for name in NAMES] == [2, *[1] * 15]
    # This process was there before, was told nothing, and goes on.
    assert bank.Account.ref("a1").deposit.ask(1) == 2
    assert queues(bank) <= set(range(FEWER))


@pytest.mark.parametrize("broker", ["redis", "folder"])
def test_wake_ups_from_before_are_dropped_where_the_broker_keeps_them(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=SHARDS)
    for name in NAMES:
        bank.Account.ref(name).deposit.send(1)
    bank.entities.host.bell.flush()
    assert queues(bank) == set(range(SHARDS))

    bank.entities.reshard(2 * SHARDS)

    with bank.app.connection_for_read() as connection:
        for number in range(SHARDS):
            name = queue_name(bank.conf["entity_cluster"], ShardId("default", number))
            assert connection.default_channel.queue_purge(name) == 0
