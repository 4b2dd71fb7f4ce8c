"""The first promises on every pool, every broker and every store, each combination with a real worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.celery.apps.errors import InsufficientFunds
from tests.celery.banks import BROKERS, POOLS, STORES, Bank, open_bank
from tests.celery.ledgers import Load
from tests.services import Services
from tests.waiting import eventually

# The one failure of a handler that is meant.
EXPECTED = "turn failed: tests.celery.apps.errors.InsufficientFunds"
COMBINATIONS = [(pool, broker, store) for store in STORES for broker in BROKERS for pool in POOLS]


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def combination(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    chosen: tuple[str, str, str] = request.param
    return chosen


@pytest.fixture(scope="module")
def bank(
    combination: tuple[str, str, str], services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    pool, broker, store = combination
    with open_bank(services, tmp_path_factory.mktemp("bank"), broker, store=store) as opened:
        worker = opened.worker(pool=pool)
        yield opened
        assert worker.log().count("Traceback") == worker.log().count(EXPECTED), worker.log_tail()


def test_ask_returns_what_the_handler_returned(bank: Bank) -> None:
    alice = bank.Account.ref("alice")

    answers = [alice.deposit.ask(5), alice.deposit.ask(6)]

    assert answers == [5, 11]
    assert alice.statement() == 11


def test_transfer_changes_both_entities(bank: Bank) -> None:
    bank.Account.ref("from").deposit.ask(30)

    left = bank.Account.ref("from").transfer.ask(20, to="to")

    assert left == 10
    assert eventually(bank.Account.ref("to").statement) == 20


def test_failed_handler_raises_its_own_exception_at_ask_and_changes_nothing(bank: Bank) -> None:
    poor = bank.Account.ref("poor")
    poor.deposit.ask(1)

    with pytest.raises(InsufficientFunds) as raised:
        poor.transfer.ask(20, to="nobody")

    assert (raised.value.balance, raised.value.amount) == (1, 20)
    assert "in transfer" in str(raised.value.__cause__)
    assert poor.statement() == 1
    assert not bank.entities.exists(bank.Account.ref("nobody"))


def test_delayed_message_is_handled_and_not_early(bank: Bank) -> None:
    before_s = time.time()

    sent = bank.Journal.ref("late").stamp.options(delay_s=0.4).send(1)

    assert sent.result(timeout_s=30) >= before_s + 0.4


def test_same_key_is_one_message_with_one_reply(bank: Bank) -> None:
    call = bank.Account.ref("keyed").deposit.options(key="order-17")

    first, second = call.send(7), call.send(7)

    assert first.id == second.id
    assert [first.result(timeout_s=30), call.ask(7)] == [7, 7]
    assert bank.Account.ref("keyed").statement() == 7


def test_delay_gives_an_async_result(bank: Bank) -> None:
    result = bank.Account.ref("delayed").deposit.delay(8)

    assert result.get(timeout=30) == 8
    assert (result.state, result.successful()) == ("SUCCESS", True)


def test_aask_answers_many_at_once_on_one_loop(bank: Bank) -> None:
    async def ask_all() -> list[int]:
        return await asyncio.gather(*(bank.Account.ref(f"async{n}").deposit_slowly.aask(n, 0.01) for n in range(20)))

    assert asyncio.run(ask_all()) == list(range(20))


def test_messages_of_one_sender_are_handled_in_the_order_of_their_sends(bank: Bank) -> None:
    journal = bank.Journal.ref("ordered")

    sent = [journal.write.send("me", number) for number in range(50)]

    sent[-1].result(timeout_s=30)
    assert journal.of("me") == list(range(50))


def test_ordinary_tasks_run_beside_entities(bank: Bank) -> None:
    bank.leave_mark_task.delay("task-ran")

    assert eventually(lambda: bank.mark("task-ran"))


def test_load_of_a_killed_worker_is_handled_once_and_in_order_by_the_next(
    bank: Bank, combination: tuple[str, str, str]
) -> None:
    """The last one, since it ends the worker that the others share."""
    with Load(bank, senders=2, messages=24, journals=3) as load:
        load.await_handled(6)
        bank.workers[0].kill_tree()

    bank.worker(pool=combination[0])

    load.assert_each_applied_once_in_order()
