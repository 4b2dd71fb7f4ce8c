"""The broker may lose everything: messages are in the store, and the sweep finds them."""

from __future__ import annotations

import time

import pytest

from entitycelery.address import ShardId
from tests.celery.banks import BROKERS
from tests.celery.conftest import OpenBank

# A few refresh intervals of 0.5 s, on a busy machine.
SWEPT_WITHIN_S = 15.0


@pytest.mark.parametrize("broker", BROKERS)
def test_message_whose_wakeup_was_lost_is_found_by_the_sweep(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=2, entity_refresh_interval_s=0.5)
    bank.worker()
    bank.Account.ref("warm").deposit.ask(1)
    # This sender's wake-ups are published, and come to nobody: no worker reads that broker.
    unheard = bank.client(broker_url="memory://")

    sent = [unheard.Account.ref(f"account{number}").deposit.send(number) for number in range(20)]

    assert [message.result(timeout_s=SWEPT_WITHIN_S) for message in sent] == list(range(20))
    unheard.entities.close()


@pytest.mark.parametrize("away", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"])
def test_messages_sent_while_the_broker_is_out_of_reach_are_stored_and_handled(new_bank: OpenBank, away: str) -> None:
    bank = new_bank("redis", entity_shards_per_group=2, entity_refresh_interval_s=0.5)
    bank.worker()
    cut_off = [bank.client(broker_url=away) for _ in range(5)]

    began_s = time.monotonic()
    sent = [cut_off[n % 5].Account.ref(f"account{n}").deposit.send(n) for n in range(20)]
    took_s = time.monotonic() - began_s

    assert [message.result(timeout_s=SWEPT_WITHIN_S) for message in sent] == list(range(20))
    # A sender does not sleep until the broker is back, not even the first time that it is away.
    assert took_s < 15
    for client in cut_off:
        client.entities.close()


def test_ask_while_the_broker_is_out_of_reach_is_answered(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=2, entity_refresh_interval_s=0.5)
    bank.worker()
    cut_off = bank.client(broker_url="amqp://guest:guest@127.0.0.1:1//")

    assert cut_off.Account.ref("alice").deposit.options(timeout_s=SWEPT_WITHIN_S).ask(3) == 3
    cut_off.entities.close()


@pytest.mark.parametrize("broker", BROKERS)
def test_wakeups_that_were_doubled_double_nothing(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=1)
    bank.worker()
    journal = bank.Journal.ref("rung")
    ring = bank.entities.client._bell.ring

    sent = []
    for number in range(30):
        sent.append(journal.write_at_leisure.send("me", number))
        ring([ShardId("default", 0)] * 3)

    sent[-1].result(timeout_s=30)
    assert journal.of("me") == list(range(30))


def test_foreign_message_on_a_shards_queue_is_dropped_and_service_goes_on(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=1)
    worker = bank.worker()
    queue = f"entity.{bank.conf['entity_cluster']}.default.0"

    with bank.app.producer_pool.acquire(block=True) as producer:
        for headers in ({"task": "entitycelery.drain"}, {"task": "entitycelery.drain", "entity_shard": "x"}):
            producer.publish("nonsense", exchange="", routing_key=queue, headers=headers)
        bank.app.send_task("no.such.task", queue=queue)

    assert bank.Account.ref("alice").deposit.ask(3) == 3
    assert worker.process.poll() is None
