"""Delayed messages, retries and expiry are rows with a due time: no worker's memory holds them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from entitycelery.exceptions import MessageExpired, UnknownMessage
from tests.celery.apps.errors import NotReady
from tests.celery.banks import BROKERS, Bank
from tests.celery.conftest import OpenBank
from tests.waiting import eventually

WITHIN_S = 30.0


def is_unknown(bank: Bank, message_id: str) -> bool:
    try:
        bank.entities.reply(message_id)
    except UnknownMessage:
        return True
    return False


@pytest.mark.parametrize("broker", BROKERS)
def test_delayed_messages_and_retries_survive_the_end_of_their_worker(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=2)
    first = bank.worker(pool="threads")
    retried = bank.Journal.ref("retried").write_when_ready.send(1, "retried")
    due_s = time.time() + 1.5
    delayed = bank.Journal.ref("delayed").stamp.options(deliver_at=datetime.fromtimestamp(due_s, UTC)).send(1)
    eventually(lambda: bank.entities.messages(bank.Journal.ref("retried"))[0].attempt >= 1)
    first.kill_tree()
    bank.allow("retried")

    bank.worker(pool="threads")

    assert retried.result(timeout_s=WITHIN_S) >= 1
    assert delayed.result(timeout_s=WITHIN_S) >= due_s
    assert bank.entities.state(bank.Journal.ref("retried")).entries == [("ready", 1)]
    assert bank.entities.state(bank.Journal.ref("delayed")).entries == [("stamp", 1)]


def test_handler_is_tried_again_until_it_is_ready_and_keeps_nothing_of_failed_attempts(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=2)
    bank.worker(pool="threads")
    journal = bank.Journal.ref("retried")
    sent = journal.write_when_ready.send(1, "retried")
    eventually(lambda: bank.mark("retried.tried") >= "1")

    assert bank.entities.state(journal).entries == []
    bank.allow("retried")

    assert sent.result(timeout_s=WITHIN_S) >= 1
    assert bank.entities.state(journal).entries == [("ready", 1)]


def test_handler_that_is_never_ready_fails_with_its_own_exception_after_its_retries(new_bank: OpenBank) -> None:
    bank = new_bank("folder", entity_shards_per_group=2)
    bank.worker(pool="threads")

    sent = bank.Journal.ref("never").write_twice_at_most.send("never")

    with pytest.raises(NotReady, match="never"):
        sent.result(timeout_s=WITHIN_S)
    assert bank.mark("never.tried") == "1"
    assert not bank.entities.exists(bank.Journal.ref("never"))


def test_delayed_messages_of_one_worker_all_come_once_and_none_early(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=4)
    bank.worker()
    journal = bank.Journal.ref("delayed")
    began_s = time.time()
    delays_s = [0.2 + 0.05 * number for number in range(20)]

    sent = [journal.stamp.options(delay_s=delay_s).send(number) for number, delay_s in enumerate(delays_s)]

    stamps_s = [message.result(timeout_s=WITHIN_S) for message in sent]
    early = [s for s, delay_s in zip(stamps_s, delays_s, strict=True) if s < began_s + delay_s]
    assert early == []
    assert journal.of("stamp") == list(range(20))


def test_message_that_nobody_handled_in_time_is_expired_and_has_no_effect(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=2)
    account = bank.Account.ref("late")
    sent = account.deposit.options(expires_s=0.2).send(5)
    in_time = account.deposit.options(expires_s=3600).send(1)
    expired_at = datetime.now(UTC) + timedelta(seconds=0.3)
    eventually(lambda: datetime.now(UTC) > expired_at)

    bank.worker(pool="solo")

    with pytest.raises(MessageExpired):
        sent.result(timeout_s=WITHIN_S)
    assert in_time.result(timeout_s=WITHIN_S) == 1


@pytest.mark.parametrize("broker", ["redis", "folder"])
def test_reply_is_purged_after_its_retention_and_its_key_is_new(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=2, entity_reply_retention_s=0.5)
    bank.worker(pool="threads")
    call = bank.Account.ref("forgotten").deposit.options(key="order-17")
    sent = call.send(5)
    assert sent.result(timeout_s=WITHIN_S) == 5

    eventually(lambda: is_unknown(bank, sent.id))

    with pytest.raises(UnknownMessage):
        sent.result(timeout_s=WITHIN_S)
    assert call.ask(5) == 10


def test_reply_is_kept_while_its_retention_lasts(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=2, entity_reply_retention_s=3600)
    first = bank.worker(pool="solo")
    call = bank.Account.ref("kept").deposit.options(key="order-17")
    assert call.ask(5) == 5
    first.kill_tree()
    bank.worker(pool="solo")

    assert call.ask(5) == 5
    assert bank.Account.ref("kept").statement() == 5
