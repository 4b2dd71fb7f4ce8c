"""What is asked about entities from outside."""

from __future__ import annotations

import threading

import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, StateConflict
from tests.client.support import Account, Narrow, drain
from tests.storage.support import change


def test_a_state_is_a_copy_of_what_is_committed(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    assert entities.state(alice) == Account()
    drain(entities)

    state = entities.state(alice)
    state.balance = 1000

    assert isinstance(state, Account)
    assert entities.state(alice) == Account(balance=5)


def test_an_entity_exists_from_its_first_turn_until_it_is_deleted(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    assert not entities.exists(alice)

    drain(entities)
    assert entities.exists(alice)

    alice.close.send()
    drain(entities)
    assert not entities.exists(alice)
    assert entities.state(alice) == Account()


def test_the_status_says_what_an_entity_is_doing(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    assert entities.status(alice).status == "idle"

    alice.deposit.send(5)
    alice.deposit.options(delay_s=60).send(5)
    pending = entities.status(alice)
    assert (pending.status, pending.pending, pending.exists, pending.version) == ("pending", 2, False, 0)

    drain(entities)
    after = entities.status(alice)
    assert (after.status, after.pending, after.exists, after.version) == ("pending", 1, True, 1)


def test_an_entity_whose_turn_runs_is_processing(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    [message] = entities.messages()
    with entities.store.drain_session(message.shard) as session:
        session.claim(10)

        assert entities.status(alice).status == "processing"
        assert entities.status(Account.ref("bob")).status == "idle"

    assert entities.status(alice).status == "pending"


def test_pending_messages_are_shown_oldest_first(entities: EntityCelery) -> None:
    alice, bob = Account.ref("alice"), Account.ref("bob")
    for amount in (1, 2):
        alice.deposit.send(amount)
        bob.deposit.send(amount)

    everybody = entities.messages()
    assert [str(m.address) for m in everybody] == ["Account/alice", "Account/bob"] * 2
    assert [m.args.replace(" ", "") for m in entities.messages(alice)] == ['{"amount":1}', '{"amount":2}']
    assert [m.id for m in entities.messages(limit=3)] == [m.id for m in everybody[:3]]
    assert entities.messages(Narrow.ref("alice")) == []


def test_live_entities_are_listed_in_pages(entities: EntityCelery) -> None:
    for name in ("c", "a", "b", "gone"):
        Account.ref(name).deposit.send(1)
    Account.ref("gone").close.send()
    Narrow.ref("a").add.send()
    drain(entities)

    assert entities.entities() == ["Account/a", "Account/b", "Account/c", "Narrow/a"]
    assert entities.entities("Account") == ["Account/a", "Account/b", "Account/c"]
    assert entities.entities(limit=2) == ["Account/a", "Account/b"]
    assert entities.entities(after="Account/b") == ["Account/c", "Narrow/a"]
    assert entities.entities("Nobody") == []


def test_a_state_that_cannot_be_loaded_names_the_field_to_a_reader(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    drain(entities)
    change(entities.store, 'UPDATE {state} SET state = \'{"balance": "five"}\'')

    with pytest.raises(StateConflict, match="field 'balance'"):
        entities.state(alice)
    with pytest.raises(StateConflict, match="field 'balance'"):
        alice.statement()


def test_only_references_can_be_asked_about(entities: EntityCelery) -> None:
    for ask in (entities.state, entities.exists, entities.status):
        with pytest.raises(ConfigurationError, match="expected a reference such as"):
            ask("Account/alice")


def test_a_reference_written_as_text_is_the_same_entity(entities: EntityCelery) -> None:
    entities.ref("Account/alice").deposit.send(5)
    drain(entities)

    assert entities.state(Account.ref("alice")).balance == 5


def test_reading_is_possible_from_any_thread(entities: EntityCelery) -> None:
    Account.ref("alice").deposit.send(5)
    drain(entities)
    seen: list[int] = []

    threads = [threading.Thread(target=lambda: seen.append(Account.ref("alice").statement())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert seen == [5] * 5
