"""Failed turns: retries as rows with a due time, dead letters, and mailboxes that always go on."""

from __future__ import annotations

from typing import Any

import pytest

from entitycelery import Entity, EntityCelery, handler
from entitycelery.address import Address
from entitycelery.exceptions import (
    MalformedMessage,
    MessageExpired,
    StateConflict,
    UnknownEntityType,
    UnknownOperation,
)
from entitycelery.message import Status
from tests.client.support import Account, drain, make_entities, time_passes
from tests.runtime.support import HOOKS, Blocking, PassingError, Puppet, dead_letters, make_puppets
from tests.storage.support import change

puppet = Puppet.ref
blocking = Blocking.ref


class Stranger(Entity):
    """Only some apps know it."""

    n: int = 0

    @handler
    def hello(self) -> int:
        return 1


def failing(times: int) -> Any:
    """A hook that fails so often and then succeeds."""
    left = [times]

    def act(self: Puppet) -> str:
        self.count += 1
        if left[0]:
            left[0] -= 1
            raise PassingError(f"{left[0]} more")
        return "done"

    return act


def test_a_failed_attempt_is_tried_again_when_its_delay_is_over(entities: EntityCelery) -> None:
    HOOKS["twice"] = failing(2)
    sent = puppet("p").retry.send("twice")

    assert drain(entities) == 1
    [message] = entities.messages()
    assert (message.id, message.attempt) == (sent.id, 1)
    assert message.last_failure is not None
    assert message.last_failure.message == "1 more"
    assert drain(entities) == 0
    time_passes(entities, 10.5)
    assert drain(entities) == 1
    # The second delay is twice the first.
    time_passes(entities, 10.5)
    assert drain(entities) == 0
    time_passes(entities, 10.5)
    assert drain(entities) == 1

    assert sent.result(timeout_s=5) == "done"
    assert entities.state(puppet("p")) == Puppet(count=1, log=["twice"])


def test_after_the_last_attempt_a_message_is_a_dead_letter(entities: EntityCelery) -> None:
    HOOKS["always"] = failing(1000)
    sent = puppet("p").retry.send("always")
    for _ in range(5):
        drain(entities)
        time_passes(entities, 1000)

    with pytest.raises(PassingError):
        sent.result(timeout_s=5)
    reply = entities.reply(sent.id)
    assert reply is not None
    assert reply.status is Status.DEAD
    # The first attempt and two retries.
    assert dead_letters(entities) == [(sent.id, "HandlerFailed", 3)]
    assert entities.messages() == []
    assert entities.state(puppet("p")) == Puppet()


def test_another_exception_is_not_tried_again_and_no_dead_letter(entities: EntityCelery) -> None:
    def fail(self: Puppet) -> None:
        raise ValueError("no use")

    HOOKS["fail"] = fail
    sent = puppet("p").retry.send("fail")

    drain(entities)

    with pytest.raises(ValueError, match="no use"):
        sent.result(timeout_s=5)
    assert (entities.messages(), dead_letters(entities)) == ([], [])


def test_the_turn_knows_its_attempt(entities: EntityCelery) -> None:
    attempts: list[int] = []

    def fail(self: Puppet) -> None:
        attempts.append(self.turn.attempt)
        raise PassingError

    HOOKS["fail"] = fail
    puppet("p").retry.send("fail")
    for _ in range(3):
        drain(entities)
        time_passes(entities, 1000)

    assert attempts == [0, 1, 2]


def test_a_waiting_retry_lets_the_others_pass(entities: EntityCelery) -> None:
    HOOKS["once"] = failing(1)
    puppet("p").retry.send("once")
    puppet("p").note.send("behind")
    drain(entities)
    assert entities.state(puppet("p")).log == ["behind"]

    time_passes(entities, 11)
    drain(entities)

    assert entities.state(puppet("p")).log == ["behind", "once"]


@pytest.mark.parametrize("behind_is_sent_later", [False, True])
def test_where_failure_blocks_a_waiting_retry_holds_the_others_back(
    entities: EntityCelery, behind_is_sent_later: bool
) -> None:
    HOOKS["once"] = failing(1)
    blocking("p").retry.send("once")
    if behind_is_sent_later:
        drain(entities)
    blocking("p").note.send("behind")
    blocking("other").note.send("other")
    drain(entities)
    assert not entities.state(blocking("p")).log
    assert entities.state(blocking("other")).log == ["other"]

    time_passes(entities, 11)
    drain(entities)

    assert entities.state(blocking("p")).log == ["once", "behind"]


def test_a_dead_letter_unblocks_its_mailbox(entities: EntityCelery) -> None:
    HOOKS["always"] = failing(1000)
    blocking("p").retry.send("always")
    behind = blocking("p").add.send(1)
    for _ in range(3):
        drain(entities)
        time_passes(entities, 1000)

    assert behind.result(timeout_s=5) == 1
    assert len(dead_letters(entities)) == 1


def test_a_delayed_message_never_blocks(entities: EntityCelery) -> None:
    blocking("p").note.options(delay_s=60).send("delayed")
    blocking("p").note.send("at once")

    drain(entities)

    assert entities.state(blocking("p")).log == ["at once"]


def test_a_message_that_expires_while_it_waits_for_a_retry_is_expired(entities: EntityCelery) -> None:
    HOOKS["once"] = failing(1)
    sent = puppet("p").retry.options(expires_s=5).send("once")
    drain(entities)
    time_passes(entities, 11)

    drain(entities)

    with pytest.raises(MessageExpired):
        sent.result(timeout_s=5)


def test_an_expired_message_changes_nothing(entities: EntityCelery) -> None:
    puppet("p").add.options(expires_s=5).send(5)
    time_passes(entities, 6)

    drain(entities)

    assert entities.messages() == []
    assert entities.state(puppet("p")).count == 0


@pytest.mark.parametrize(
    ("column", "value", "error", "why"),
    [
        ("operation", "vanish", UnknownOperation, "Puppet has no operation 'vanish'"),
        ("args", "{}", None, None),
        ("args", '{"amount": "five"}', MalformedMessage, "argument 'amount' of Puppet.add"),
        ("args", '{"amount": 1, "more": 2}', MalformedMessage, "argument 'more' of Puppet.add"),
        ("args", '"five"', MalformedMessage, "arguments of Puppet.add"),
        ("args", "null", MalformedMessage, "arguments of Puppet.add"),
    ],
)
def test_a_message_that_no_handler_takes_is_given_up_and_the_mailbox_goes_on(
    store_url: str, cluster_name: str, column: str, value: str, error: type[Exception] | None, why: str | None
) -> None:
    entities = make_puppets(store_url, cluster_name, deploy_window_s=0)
    spoiled = puppet("p").add.send(5)
    # A constant of this file, bound by none of the two drivers in the same way.
    change(entities.store, f"UPDATE {{message}} SET {column} = '{value}'")  # noqa: S608
    after = puppet("p").add.send(1)

    drain(entities)

    assert after.result(timeout_s=5) == (2 if error is None else 1)
    if error is not None:
        with pytest.raises(error, match=why):
            spoiled.result(timeout_s=5)
        assert dead_letters(entities) == [(spoiled.id, error.reason, 1)]  # type: ignore[attr-defined]
    entities.close()


def test_a_type_that_this_app_does_not_know_is_given_up_and_others_go_on(store_url: str, cluster_name: str) -> None:
    sender, host = (make_entities(store_url, cluster_name, deploy_window_s=0) for _ in range(2))
    sender.register(Stranger)
    unknown = Stranger.ref("s").hello.send()
    known = Account.ref("alice").deposit.send(5)

    drain(host)

    with pytest.raises(UnknownEntityType, match=r"no entity type 'Stranger'.*it knows: Account, "):
        unknown.result(timeout_s=5)
    assert known.result(timeout_s=5) == 5
    assert host.messages() == []
    sender.close()
    host.close()


def test_a_stored_state_that_cannot_be_loaded_fails_its_messages_with_the_fields_name(entities: EntityCelery) -> None:
    puppet("p").add.send(1)
    drain(entities)
    change(entities.store, 'UPDATE {state} SET state = \'{"count": "many"}\'')
    failed = [puppet("p").add.send(1), puppet("p").note.send("x")]
    other = puppet("other").add.send(1)

    drain(entities)

    for sent in failed:
        with pytest.raises(StateConflict, match="a stored state of Puppet does not fit field 'count'"):
            sent.result(timeout_s=5)
    assert other.result(timeout_s=5) == 1
    assert entities.messages() == []

    # The state is as it was, so that it can be mended.
    change(entities.store, "UPDATE {state} SET state = '{\"count\": 40}' WHERE entity_id = 'p'")
    mended = puppet("p").add.send(2)
    drain(entities)
    assert mended.result(timeout_s=5) == 42


def test_fields_of_another_release_survive_a_turn(entities: EntityCelery) -> None:
    puppet("p").add.send(1)
    drain(entities)
    change(entities.store, 'UPDATE {state} SET state = \'{"count": 1, "later": [1, {"a": null}]}\'')
    for _ in range(2):
        puppet("p").add.send(1)
        drain(entities)

    stored = entities.store.state(Address("Puppet", "p")).state
    assert stored is not None
    assert '"later":[1,{"a":null}]' in stored.replace(" ", "")
    assert '"count":3' in stored.replace(" ", "")
