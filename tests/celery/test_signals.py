"""Signals with real workers: each ends once, as whoever was first says, whatever is killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from entitycelery import SignalOutcome
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.waiting import eventually

WITHIN_S = 60.0


def open_approvals(new_bank: OpenBank, broker: str) -> Bank:
    return new_bank(broker, app_name="approvals", entity_shards_per_group=4)


def ends(bank: Bank, name: str) -> list[str]:
    found: list[str] = bank.entities.state(bank.Order.ref(name)).ends
    return found


def counted(bank: Bank) -> int:
    return sum(bank.entities.state(bank.Ends.ref(str(number))).number for number in range(4))


@pytest.mark.parametrize("broker", ["amqp", "redis", "folder"])
def test_many_who_ask_wait_for_their_signals_and_no_slot_does(new_bank: OpenBank, broker: str) -> None:
    bank = open_approvals(new_bank, broker)
    bank.worker()
    names = [f"o{number}" for number in range(12)]
    with ThreadPoolExecutor(len(names)) as pool:
        asked = [
            pool.submit(bank.Order.ref(name).await_payment.options(timeout_s=WITHIN_S).ask, 600.0) for name in names
        ]
        eventually(lambda: len(bank.entities.signals()) == len(names), timeout_s=WITHIN_S)

        # Two slots, twelve who wait: others are served.
        bank.Order.ref("other").expect_payment.options(timeout_s=WITHIN_S).ask(600.0)
        # Its claim is let go of a moment after its reply is there.
        eventually(lambda: bank.entities.status(bank.Order.ref("o0")).status == "suspended")
        for number, name in enumerate(names):
            assert bank.entities.signal(bank.Order.ref(name), "payment").succeed(number) is SignalOutcome.COMPLETED

        assert [one.result(WITHIN_S) for one in asked] == [f"paid {number}" for number in range(len(names))]
    eventually(lambda: counted(bank) == len(names))


def test_a_time_out_comes_at_its_moment(new_bank: OpenBank) -> None:
    bank = open_approvals(new_bank, "amqp")
    bank.worker()
    begun_s = time.monotonic()

    assert bank.Order.ref("o").await_payment.options(timeout_s=WITHIN_S).ask(1.5) == "forgotten"

    assert time.monotonic() - begun_s >= 1.5
    assert ends(bank, "o") == ["forgotten"]


def test_a_signal_that_is_sent_while_everything_is_down_is_not_lost(new_bank: OpenBank) -> None:
    bank = open_approvals(new_bank, "redis")
    worker = bank.worker()
    token = bank.Order.ref("expected").expect_payment.ask(600.0)
    worker.kill_tree()

    assert bank.entities.signal(token).succeed(1) is SignalOutcome.COMPLETED
    assert bank.entities.signal("Order/early", "payment").succeed(2) is SignalOutcome.EARLY
    with redis.Redis.from_url(bank.conf["broker_url"]) as broker:
        # The wake-ups are gone too.
        broker.flushdb()
    bank.worker()

    eventually(lambda: ends(bank, "expected") == ["paid 1"], timeout_s=WITHIN_S)
    bank.Order.ref("early").expect_payment.ask(600.0)
    eventually(lambda: ends(bank, "early") == ["paid 2"], timeout_s=WITHIN_S)


class Completers:
    """Complete the signals of all orders, each several times at once, about when they time out; and remember the word
    that they were given."""

    def __init__(self, bank: Bank, names: list[str]) -> None:
        self.bank = bank
        self.names = names
        self.told: dict[str, list[int]] = {name: [] for name in names}
        self._threads = [threading.Thread(target=self._complete, args=(number,)) for number in range(3)]

    def _complete(self, number: int) -> None:
        order = random.Random(number)
        for name in order.sample(self.names, len(self.names)):
            amount = order.randrange(10**9)
            outcome = self.bank.entities.signal(self.bank.Order.ref(name), "payment").succeed(amount)
            if outcome is not SignalOutcome.OVER:
                self.told[name].append(amount)
            if number == 0:
                self.bank.Order.ref("payer").pay_for.send(name, -1)

    def __enter__(self) -> Completers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()


def expected_ends(told: list[int], name: str, bank: Bank) -> Iterator[str]:
    """How an order may have ended."""
    if told:
        yield from (f"paid {amount}" for amount in told)
    else:
        yield from ("forgotten", "paid -1")


@pytest.mark.chaos
@pytest.mark.parametrize("broker", ["amqp", "folder"])
def test_each_signal_ends_once_and_as_whoever_was_told_so_though_workers_are_killed(
    new_bank: OpenBank, broker: str
) -> None:
    bank = open_approvals(new_bank, broker)
    worker = bank.worker()
    names = [f"o{number}" for number in range(60)]
    for number, name in enumerate(names):
        # Some are expected before they are completed, some after, some time out in between.
        bank.Order.ref(name).expect_payment.options(delay_s=0.05 * number).send(0.2 + 0.05 * (number % 20))

    with Completers(bank, names) as completers:
        for _ in range(4):
            handled = counted(bank)
            eventually(lambda handled=handled: counted(bank) >= min(handled + 5, len(names)), timeout_s=WITHIN_S)
            worker.kill_tree()
            worker = bank.worker()

    eventually(lambda: counted(bank) == len(names), timeout_s=WITHIN_S)
    eventually(lambda: bank.pending() == 0, timeout_s=WITHIN_S)
    for name in names:
        told = completers.told[name]
        assert len(told) <= 1, f"{name}: {told} were all told that they were first"
        [end] = ends(bank, name)
        assert end in set(expected_ends(told, name, bank)), f"{name} ended with {end!r}, told: {told}"
    assert counted(bank) == len(names)
    assert bank.entities.signals() == []
