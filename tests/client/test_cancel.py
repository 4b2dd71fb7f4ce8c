"""Cancelling and rescheduling through `entities`: what is said, who is told, what rings."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entitycelery import Change, EntityCelery
from entitycelery.exceptions import ConfigurationError, MessageCancelled, UnknownMessage
from entitycelery.message import ChangeOutcome, Status
from tests.client.support import Account, Rung, drain, rung_by, time_passes
from tests.waiting import eventually


@pytest.fixture
def rung(entities: EntityCelery) -> Rung:
    return rung_by(entities)


def test_a_cancelled_message_is_never_handled(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    cancelled, kept = alice.deposit.send(5), alice.deposit.send(7)

    assert entities.cancel(cancelled.id) == Change(cancelled.id, ChangeOutcome.CANCELLED, Status.CANCELLED)
    drain(entities)

    assert kept.result() == 7
    assert entities.state(alice).balance == 7


def test_whoever_asks_for_a_cancelled_message_is_told(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(5)
    entities.cancel(sent)

    with pytest.raises(MessageCancelled) as told:
        sent.result()

    assert (told.value.message_id, told.value.address) == (sent.id, "Account/alice")


def test_a_waiting_ask_ends_when_its_message_is_cancelled(entities: EntityCelery) -> None:
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            Account.ref("alice").deposit.ask(5)
        except MessageCancelled as exc:
            ended.append(exc)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(entities.messages)
    [waiting] = entities.messages()

    assert entities.cancel(waiting.id).outcome == "cancelled"
    asking.join(30)

    assert [str(exc) for exc in ended] == ["Account/alice deposit: the message was cancelled"]


def test_a_finished_message_cannot_be_cancelled_and_says_how_it_ended(entities: EntityCelery) -> None:
    done, failed = Account.ref("alice").deposit.send(5), Account.ref("alice").withdraw.send(100)
    drain(entities)

    assert entities.cancel(done) == Change(done.id, ChangeOutcome.FINISHED, Status.DONE)
    assert entities.cancel(failed) == Change(failed.id, ChangeOutcome.FINISHED, Status.FAILED)
    assert done.result() == 5


def test_cancelling_twice_says_that_it_is_cancelled(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(5)
    entities.cancel(sent)

    assert entities.cancel(sent) == Change(sent.id, ChangeOutcome.FINISHED, Status.CANCELLED)


def test_an_unknown_message_is_called_unknown(entities: EntityCelery) -> None:
    assert entities.cancel("nobody").outcome == "unknown"
    assert entities.reschedule("nobody", delay_s=1).outcome == "unknown"
    with pytest.raises(UnknownMessage):
        entities.reply("nobody")


def test_a_key_names_the_message_to_cancel(entities: EntityCelery) -> None:
    order = Account.ref("alice").deposit.options(key="order-17")
    sent = order.send(5)

    assert entities.cancel(order) == Change(sent.id, ChangeOutcome.CANCELLED, Status.CANCELLED)
    with pytest.raises(MessageCancelled):
        order.ask(5)
    assert entities.messages() == []


def test_a_call_without_a_key_names_no_message(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="may mean many messages"):
        entities.cancel(Account.ref("alice").deposit)
    with pytest.raises(ConfigurationError, match="expected a message id, a Sent, or a call"):
        entities.cancel(17)  # type: ignore[arg-type]


def test_a_rescheduled_message_is_handled_at_its_new_time(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    sent = alice.deposit.send(5)

    assert entities.reschedule(sent, delay_s=60) == Change(sent.id, ChangeOutcome.RESCHEDULED, None)
    drain(entities)
    assert not entities.exists(alice)

    time_passes(entities, 61)
    drain(entities)
    assert sent.result() == 5


def test_a_delayed_message_can_be_had_at_once(entities: EntityCelery, rung: Rung) -> None:
    sent = Account.ref("alice").deposit.options(delay_s=3600).send(5)
    [waiting] = entities.messages()
    assert rung.shards == []

    entities.reschedule(sent, delay_s=0)

    assert rung.shards == [waiting.shard]
    drain(entities)
    assert sent.result() == 5


def test_a_message_can_be_rescheduled_to_an_instant(entities: EntityCelery, rung: Rung) -> None:
    sent = Account.ref("alice").deposit.options(delay_s=60).send(5)
    at = datetime.now(UTC) + timedelta(hours=2)

    entities.reschedule(sent, deliver_at=at)

    [waiting] = entities.messages()
    assert waiting.due_at_epoch_s == pytest.approx(at.timestamp(), abs=0.001)
    assert rung.shards == []


def test_a_finished_message_cannot_be_rescheduled(entities: EntityCelery) -> None:
    sent = Account.ref("alice").deposit.send(5)
    drain(entities)

    assert entities.reschedule(sent, delay_s=5) == Change(sent.id, ChangeOutcome.FINISHED, Status.DONE)
    assert entities.messages() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one of them"),
        ({"delay_s": 1, "deliver_at": datetime.now(UTC)}, "give one of them"),
        ({"delay_s": -1}, "delay_s is a number of seconds"),
        ({"deliver_at": datetime.now()}, "needs a time zone"),
    ],
)
def test_a_reschedule_needs_one_sensible_time(entities: EntityCelery, given: dict[str, Any], said: str) -> None:
    sent = Account.ref("alice").deposit.send(5)

    with pytest.raises(ConfigurationError, match=said):
        entities.reschedule(sent, **given)


def test_cancelling_a_message_that_holds_nothing_back_rings_for_nothing(entities: EntityCelery, rung: Rung) -> None:
    sent = Account.ref("alice").deposit.options(delay_s=60).send(5)

    entities.cancel(sent)

    assert rung.shards == []
