"""Cancelled, rescheduled and deleted while a real turn of the entity runs."""

from __future__ import annotations

from typing import Any

import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, MessageCancelled
from tests.client.support import drain, time_passes
from tests.runtime.support import HOOKS, Blocking, PassingError, Puppet, dead_letters
from tests.storage.interleave import Party


@pytest.mark.parametrize("handler", ["act", "aact"])
def test_a_turn_whose_message_is_cancelled_meanwhile_leaves_nothing(entities: EntityCelery, handler: str) -> None:
    alice, bob = Puppet.ref("alice"), Puppet.ref("bob")
    sent = getattr(alice, handler).send("cancelled")

    def cancel(puppet: Puppet) -> None:
        elsewhere(lambda: entities.cancel(sent))
        puppet.count = 100
        Puppet.ref("bob").add.send(7)

    async def acancel(puppet: Puppet) -> None:
        cancel(puppet)

    HOOKS["cancelled"] = cancel if handler == "act" else acancel
    behind = alice.add.send(1)
    drain(entities)

    with pytest.raises(MessageCancelled):
        sent.result()
    assert behind.result() == 1
    assert entities.state(alice).log == []
    assert not entities.exists(bob)


def test_a_turn_whose_message_is_rescheduled_meanwhile_runs_again_at_that_time(entities: EntityCelery) -> None:
    alice = Puppet.ref("alice")
    sent = alice.act.send("rescheduled")
    runs: list[int] = []

    def reschedule(puppet: Puppet) -> int:
        runs.append(puppet.turn.attempt)
        if len(runs) == 1:
            elsewhere(lambda: entities.reschedule(sent, delay_s=60))
        return len(runs)

    HOOKS["rescheduled"] = reschedule
    drain(entities)
    assert (runs, entities.exists(alice)) == ([0], False)

    time_passes(entities, 61)
    drain(entities)
    assert (sent.result(), runs) == (2, [0, 0])


def test_a_turn_with_its_own_transaction_that_is_cancelled_first_does_not_begin(entities: EntityCelery) -> None:
    alice = Puppet.ref("alice")
    sent = alice.act.send("connected")
    reached: list[str] = []

    def connect(puppet: Puppet) -> None:
        elsewhere(lambda: entities.cancel(sent))
        reached.append("before")
        assert puppet.turn.connection is not None
        reached.append("after")

    HOOKS["connected"] = connect
    drain(entities)

    assert reached == ["before"]
    assert not entities.exists(alice)
    with pytest.raises(MessageCancelled):
        sent.result()


def test_a_cancelled_blocking_head_lets_the_mailbox_go_on(entities: EntityCelery) -> None:
    alice = Blocking.ref("alice")
    HOOKS["down"] = fail
    head, behind = alice.retry.send("down"), alice.add.send(1)
    drain(entities)
    assert entities.reply(behind.id) is None

    assert entities.cancel(head).outcome == "cancelled"
    drain(entities)

    assert behind.result() == 1


def test_a_retry_that_is_rescheduled_to_now_keeps_its_attempts(entities: EntityCelery) -> None:
    HOOKS["down"] = fail
    sent = Puppet.ref("alice").retry.send("down")
    for _ in range(3):
        drain(entities)
        entities.reschedule(sent, delay_s=0)

    assert dead_letters(entities) == [(sent.id, "HandlerFailed", 3)]


@pytest.mark.parametrize("verb", ["cancel", "reschedule", "retry_dead", "discard_dead"])
def test_a_turn_cannot_control_other_messages(entities: EntityCelery, verb: str) -> None:
    other = Puppet.ref("bob").add.options(delay_s=60).send(1)
    HOOKS["controls"] = lambda puppet: getattr(entities, verb)(
        other.id, **({"delay_s": 1} if verb == "reschedule" else {})
    )
    sent = Puppet.ref("alice").act.send("controls")
    drain(entities)

    with pytest.raises(ConfigurationError, match=f"{verb} inside a turn would not be part of its commit"):
        sent.result()
    assert [message.id for message in entities.messages()] == [other.id]


def fail(_: Any) -> None:
    raise PassingError("down")


def elsewhere(act: Any) -> None:
    """Somebody else does it, while the turn waits."""
    Party(act).join()
