"""One slow entity holds back nobody else: not its shard, not its batch, not the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.celery.banks import Bank, open_bank
from tests.celery.conftest import OpenBank
from tests.services import Services
from tests.waiting import eventually

LONG_S = 60.0
SOON_S = 20.0


@pytest.fixture(scope="module", params=["redis-prefork", "redis-threads", "folder-prefork", "amqp-gevent"])
def bank(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    """One shard and two pool slots: whoever is slow is in everybody's way, if anybody is."""
    broker, pool = request.param.split("-")
    with open_bank(services, tmp_path_factory.mktemp("bank"), broker, entity_shards_per_group=1) as opened:
        opened.worker(pool=pool)
        yield opened


def test_long_turn_does_not_hold_back_other_entities_of_its_shard(bank: Bank) -> None:
    slow = bank.Journal.ref("slow").hold.send("me", 0, "slow")
    eventually(lambda: bank.mark("slow.started"))

    answers = [bank.Account.ref(f"quick{number}").deposit.options(timeout_s=SOON_S).ask(number) for number in range(20)]

    assert answers == list(range(20))
    assert bank.Journal.ref("slow").of("me") == []
    bank.allow("slow")
    assert slow.result(timeout_s=LONG_S)


def test_turns_of_a_batch_are_committed_though_a_later_one_is_long(bank: Bank) -> None:
    before = [bank.Account.ref(f"before{number}").deposit.prepare(number) for number in range(5)]
    long = bank.Journal.ref("long").hold.prepare("me", 0, "long")
    behind = [bank.Account.ref(f"behind{number}").deposit.prepare(number) for number in range(5)]

    sent = bank.entities.send_many([*before, long, *behind])

    quick = [*sent[:5], *sent[6:]]
    assert [message.result(timeout_s=SOON_S) for message in quick] == [*range(5), *range(5)]
    assert bank.entities.status(bank.Journal.ref("long")).status == "processing"
    bank.allow("long")
    assert sent[5].result(timeout_s=LONG_S)


def test_mail_behind_a_long_turn_of_the_same_entity_waits_and_keeps_its_order(bank: Bank) -> None:
    journal = bank.Journal.ref("queued")
    journal.hold.send("me", 0, "queued")
    eventually(lambda: bank.mark("queued.started"))
    behind = [journal.write.send("me", number) for number in range(1, 10)]

    bank.Account.ref("witness").deposit.options(timeout_s=SOON_S).ask(1)
    assert journal.of("me") == []
    bank.allow("queued")

    assert behind[-1].result(timeout_s=LONG_S)
    assert journal.of("me") == list(range(10))


def test_asynchronous_turns_of_different_entities_run_at_the_same_time(bank: Bank) -> None:
    calls = [bank.Account.ref(f"async{number}").deposit_slowly.prepare(number, 0.2) for number in range(100)]

    began_s = time.monotonic()
    sent = bank.entities.send_many(calls)
    results = [message.result(timeout_s=LONG_S) for message in sent]
    took_s = time.monotonic() - began_s

    assert results == list(range(100))
    # One after the other they would take 20 s, and 10 s in two slots.
    assert took_s < 6


def test_asynchronous_turns_of_one_entity_keep_their_order(bank: Bank) -> None:
    account = bank.Account.ref("async-ordered")

    async def ask_all() -> list[int]:
        sent = [await account.deposit_slowly.asend(1, pause_s) for pause_s in (0.1, 0.0, 0.05, 0.0)]
        return [await message.aresult(timeout_s=LONG_S) for message in sent]

    assert asyncio.run(ask_all()) == [1, 2, 3, 4]


def test_short_turns_do_not_wait_for_an_asynchronous_one_of_their_batch(bank: Bank) -> None:
    slow = bank.Account.ref("async-long").deposit_slowly.prepare(1, 8.0)
    quick = [bank.Account.ref(f"sync{number}").deposit.prepare(number) for number in range(5)]

    sent = bank.entities.send_many([slow, *quick])

    assert [message.result(timeout_s=7.0) for message in sent[1:]] == list(range(5))
    assert bank.Account.ref("async-long").statement() == 0


def test_all_slots_in_long_turns_leave_the_rest_waiting_and_lose_nothing(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=1)
    bank.worker(pool="prefork", slots=1)
    held = bank.Journal.ref("held").hold.send("me", 0, "held")
    eventually(lambda: bank.mark("held.started"))
    waiting = [bank.Account.ref(f"waiting{number}").deposit.send(number) for number in range(5)]

    bank.allow("held")

    assert held.result(timeout_s=LONG_S)
    assert [message.result(timeout_s=LONG_S) for message in waiting] == list(range(5))
