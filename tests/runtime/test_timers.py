"""Timers: named messages of an entity to itself, which come and go with its turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, HandlerFailed, StateConflict
from tests.client.support import Account, change, drain, time_passes
from tests.runtime.support import HOOKS, PassingError, Puppet
from tests.storage.support import query


def puppet() -> Puppet:
    return Puppet.ref("p")


def act(entities: EntityCelery, hook: Callable[[Any], Any]) -> Any:
    """One turn of the puppet."""
    HOOKS["act"] = hook
    sent = puppet().act.send("act")
    drain(entities)
    return sent.result(timeout_s=5)


def names(entities: EntityCelery) -> list[str]:
    return [timer.name for timer in entities.timers(puppet())]


def pending(entities: EntityCelery) -> list[str]:
    return [message.id for message in entities.messages(puppet())]


def test_a_timer_fires_once_at_its_time_and_is_set_no_more(entities: EntityCelery) -> None:
    act(entities, lambda self: self.remind("bill", self.add.prepare(5), after_s=60))
    drain(entities)
    assert entities.state(puppet()).count == 0
    [timer] = entities.timers(puppet())
    assert (timer.name, timer.operation, timer.args, timer.every_s) == ("bill", "add", '{"amount":5}', None)
    assert pending(entities) == [timer.message_id]
    assert abs(timer.due_epoch_s - time.time() - 60) < 30

    time_passes(entities, 61)
    drain(entities)
    drain(entities)

    assert entities.state(puppet()).count == 5
    assert names(entities) == pending(entities) == []


def test_a_timer_is_set_with_the_turn_or_not_at_all(entities: EntityCelery) -> None:
    def set_and_fail(self: Puppet) -> None:
        self.remind("bill", self.add, after_s=60)
        raise PassingError

    with pytest.raises(PassingError):
        act(entities, set_and_fail)

    assert names(entities) == pending(entities) == []


def test_a_timer_that_is_set_again_replaces_the_earlier_one_and_leaves_no_row_behind(entities: EntityCelery) -> None:
    for after_s in (10, 20, 30):
        act(entities, lambda self, after_s=after_s: self.remind("bill", self.add.prepare(after_s), after_s=after_s))
    [timer] = entities.timers(puppet())
    assert pending(entities) == [timer.message_id]

    time_passes(entities, 100)
    drain(entities)

    assert entities.state(puppet()).count == 30


def test_a_timer_is_cancelled_by_its_name(entities: EntityCelery) -> None:
    act(entities, lambda self: self.remind("bill", self.add, after_s=10))

    assert act(entities, lambda self: [self.turn.cancel_timer("bill"), self.turn.cancel_timer("bill")]) == [True, False]

    time_passes(entities, 100)
    drain(entities)
    assert entities.state(puppet()).count == 0
    assert names(entities) == pending(entities) == []


def test_a_cancellation_that_is_claimed_together_with_the_timer_wins(entities: EntityCelery) -> None:
    act(entities, lambda self: self.remind("bill", self.add, after_s=10))
    HOOKS["act"] = lambda self: self.turn.cancel_timer("bill")
    puppet().act.send("act")
    # So that the timer's message is the later one of the two.
    change(entities.store, "UPDATE {message} SET seq = seq + 1000 WHERE due_at IS NOT NULL")
    time_passes(entities, 100)

    drain(entities)

    assert entities.state(puppet()).count == 0
    assert names(entities) == pending(entities) == []


def test_a_timer_set_and_cancelled_in_one_turn_was_never_there(entities: EntityCelery) -> None:
    def set_and_cancel(self: Puppet) -> bool:
        self.remind("bill", self.add, after_s=10)
        self.remind("bill", self.add, after_s=20)
        return self.turn.cancel_timer("bill")

    assert act(entities, set_and_cancel) is True

    assert names(entities) == pending(entities) == []


def test_an_interval_fires_again_and_again_and_one_firing_makes_up_for_those_missed(entities: EntityCelery) -> None:
    act(entities, lambda self: self.remind("bill", self.add, every_s=10))
    [first] = entities.timers(puppet())

    # The message is due; by its own reckoning the timer is too, since the entity reckons with what it had stored.
    time_passes(entities, 11)
    drain(entities)
    [second] = entities.timers(puppet())
    overdue(entities, 35)
    drain(entities)
    [third] = entities.timers(puppet())

    assert entities.state(puppet()).count == 2
    assert second.due_epoch_s == pytest.approx(first.due_epoch_s + 10)
    now_s = time.time()
    assert now_s < third.due_epoch_s <= now_s + 10.5
    assert (third.due_epoch_s - first.due_epoch_s + 35) % 10 == pytest.approx(0, abs=0.001)
    assert pending(entities) == [third.message_id]


def overdue(entities: EntityCelery, seconds: float) -> None:
    """Move the puppet's only timer, and its message, so many seconds into the past."""
    [timer] = entities.timers(puppet())
    [(stored,)] = query(entities.store, "SELECT CAST(timers AS text) FROM {state}")
    timers = json.loads(str(stored))
    timers["bill"]["due_epoch_s"] = timer.due_epoch_s - seconds
    change(entities.store, f"UPDATE {{state}} SET timers = '{json.dumps(timers)}'")  # noqa: S608 - our own
    time_passes(entities, seconds + 100)


def test_an_interval_goes_on_when_its_handler_fails_and_while_it_is_retried_waits(entities: EntityCelery) -> None:
    def fail(self: Puppet) -> None:
        raise PassingError

    HOOKS["fail"] = fail
    act(entities, lambda self: self.remind("bill", self.act.prepare("fail"), every_s=10))
    act(entities, lambda self: self.remind("try", self.retry.prepare("fail"), every_s=10))
    before = {timer.name: timer.message_id for timer in entities.timers(puppet())}

    time_passes(entities, 11)
    drain(entities)

    after = {timer.name: timer.message_id for timer in entities.timers(puppet())}
    assert after["bill"] != before["bill"]
    assert after["try"] == before["try"]
    for _ in range(3):
        time_passes(entities, 100)
        drain(entities)
    assert {timer.name for timer in entities.timers(puppet())} == {"bill", "try"}
    assert {timer.name: timer.message_id for timer in entities.timers(puppet())}["try"] != before["try"]
    assert sorted(pending(entities)) == sorted(timer.message_id for timer in entities.timers(puppet()))


def test_the_handler_of_an_interval_may_end_it_or_set_it_anew(entities: EntityCelery) -> None:
    HOOKS["last"] = lambda self: [self.turn.timer, self.turn.cancel_timer("bill")]
    HOOKS["anew"] = lambda self: self.remind("bill", self.act.prepare("last"), every_s=20)
    act(entities, lambda self: self.remind("bill", self.act.prepare("anew"), every_s=10))

    time_passes(entities, 11)
    drain(entities)
    [timer] = entities.timers(puppet())
    assert (timer.every_s, pending(entities)) == (20, [timer.message_id])
    time_passes(entities, 31)
    drain(entities)

    assert names(entities) == pending(entities) == []
    reply = entities.reply(timer.message_id)
    assert reply is not None
    assert json.loads(reply.result or "") == ["bill", True]


def test_mail_refused_or_a_result_that_cannot_be_stored_does_not_end_an_interval(entities: EntityCelery) -> None:
    Account.ref("alice").deposit.options(key="k").send(1)

    def conflict(self: Puppet) -> None:
        Account.ref("alice").deposit.options(key="k").send(2)

    HOOKS["conflict"] = conflict
    act(entities, lambda self: self.remind("bill", self.act.prepare("conflict"), every_s=10))
    [first] = entities.timers(puppet())

    time_passes(entities, 11)
    drain(entities)

    [second] = entities.timers(puppet())
    assert second.message_id != first.message_id
    assert pending(entities) == [second.message_id]


def test_the_end_of_an_entity_is_the_end_of_its_timers(entities: EntityCelery) -> None:
    act(entities, lambda self: [self.remind("a", self.add, after_s=10), self.remind("b", self.add, every_s=10)])

    entities.delete(puppet())
    drain(entities)

    assert not entities.exists(puppet())
    assert names(entities) == pending(entities) == []


def test_an_instant_a_past_one_too_and_a_first_time_for_an_interval(entities: EntityCelery) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)

    def remind(self: Puppet) -> None:
        self.remind("hour", self.add, at=at, every_s=timedelta(days=1))
        self.remind("past", self.add.prepare(7), at=at - timedelta(days=2))

    act(entities, remind)

    drain(entities)
    assert entities.state(puppet()).count == 7
    [timer] = entities.timers(puppet())
    assert (timer.name, timer.due_epoch_s, timer.every_s) == ("hour", pytest.approx(at.timestamp()), 86_400)


def test_a_message_of_a_timer_cancelled_by_its_id_never_fires_and_is_not_listed(entities: EntityCelery) -> None:
    act(entities, lambda self: self.remind("bill", self.add, after_s=10))
    [timer] = entities.timers(puppet())

    entities.cancel(timer.message_id)

    assert names(entities) == []
    time_passes(entities, 100)
    drain(entities)
    assert entities.state(puppet()).count == 0
    act(entities, lambda self: self.remind("bill", self.add, after_s=10))
    assert names(entities) == ["bill"]


def test_asynchronous_handlers_set_timers_and_are_called_by_them(entities: EntityCelery) -> None:
    async def remind(self: Puppet) -> None:
        self.remind("note", self.anote.prepare("fired"), after_s=10)

    HOOKS["go"] = remind
    puppet().aact.send("go")
    drain(entities)
    time_passes(entities, 11)
    drain(entities)

    assert entities.state(puppet()).log == ["async go", "fired"]


def test_a_turn_in_its_own_transaction_sets_and_fires_timers(entities: EntityCelery) -> None:
    def remind(self: Puppet) -> None:
        self.turn.connection.exec_driver_sql("SELECT 1")
        self.remind("bill", self.act.prepare("bill"), every_s=10)

    HOOKS["bill"] = lambda self: [self.turn.connection.exec_driver_sql("SELECT 1"), None][1]
    act(entities, remind)
    time_passes(entities, 11)
    drain(entities)

    assert entities.state(puppet()).log == ["act", "bill"]
    assert names(entities) == ["bill"]


@pytest.mark.parametrize(
    ("remind", "sentence"),
    [
        (lambda self: self.remind("x", self.add), "takes after_s, at or every_s"),
        (lambda self: self.remind("x", self.add, after_s=1, at=datetime.now(UTC)), "exclude each other"),
        (lambda self: self.remind("x", self.add, after_s=-1), "from 0 to"),
        (lambda self: self.remind("x", self.add, every_s=0.5), "every_s is at least 1"),
        (lambda self: self.remind("", self.add, after_s=1), "1 to 200 printable"),
        (lambda self: self.remind("x", self.add.options(key="k"), after_s=1), "without options"),
        (lambda self: self.remind("x", Puppet.ref("other").add, after_s=1), "of the entity itself"),
        (lambda self: self.remind("x", Account.deposit, after_s=1), "expected a call"),
        (lambda self: self.remind("x", self.add, at=datetime(2030, 1, 1)), "time zone"),
    ],
)
def test_a_timer_that_makes_no_sense_is_refused_in_one_sentence(
    entities: EntityCelery, remind: Callable[[Any], Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        act(entities, remind)


def test_an_entity_has_a_bounded_number_of_timers(entities: EntityCelery) -> None:
    def remind(self: Puppet) -> None:
        for number in range(1_001):
            self.remind(f"t{number}", self.add, after_s=1_000)

    with pytest.raises(ConfigurationError, match="at most 1,000 timers"):
        act(entities, remind)
    assert names(entities) == []


def test_timers_that_were_edited_by_hand_fail_the_turn_and_do_not_keep_an_entity_from_its_end(
    entities: EntityCelery,
) -> None:
    act(entities, lambda self: self.remind("bill", self.add, after_s=10))
    change(entities.store, "UPDATE {state} SET timers = '[1]'")

    with pytest.raises((StateConflict, HandlerFailed), match="timers of an entity cannot be read"):
        act(entities, lambda self: None)
    with pytest.raises(StateConflict, match="timers of an entity cannot be read"):
        entities.timers(puppet())

    entities.delete(puppet())
    drain(entities)
    assert not entities.exists(puppet())
    assert entities.timers(puppet()) == []
