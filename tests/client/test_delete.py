"""Deleting an entity from outside: a turn like any other, in its place in the mailbox."""

from __future__ import annotations

import pytest

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import ConfigurationError, MailboxFull, StateConflict
from tests.client.support import Account, Narrow, drain, make_entities
from tests.storage.support import change, query


def test_a_deleted_entity_is_gone_and_its_version_goes_on(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    deleted = entities.delete(alice)
    drain(entities)

    assert deleted.result() is None
    assert not entities.exists(alice)
    assert entities.entities() == []
    assert entities.status(alice).version == 1
    assert query(entities.store, "SELECT count(*) FROM {state}") == [(1,)]


def test_a_deletion_keeps_its_place_among_the_messages(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    before = alice.deposit.send(5)
    entities.delete(alice)
    after = alice.deposit.send(7)
    drain(entities)

    assert (before.result(), after.result()) == (5, 7)
    assert entities.state(alice).balance == 7


def test_a_state_that_cannot_be_loaded_can_be_deleted(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)
    drain(entities)
    change(entities.store, 'UPDATE {state} SET state = \'{"balance": "five"}\'')
    with pytest.raises(StateConflict):
        entities.state(alice)

    deleted = entities.delete(alice)
    drain(entities)

    assert deleted.result() is None
    assert entities.state(alice).balance == 0


def test_a_deletion_can_be_cancelled(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    alice.deposit.send(5)

    assert entities.cancel(entities.delete(alice)).outcome == "cancelled"
    drain(entities)

    assert entities.state(alice).balance == 5


def test_a_deletion_takes_room_in_the_mailbox(entities: EntityCelery) -> None:
    narrow = Narrow.ref("n")
    narrow.add.send()
    narrow.add.send()

    with pytest.raises(MailboxFull):
        entities.delete(narrow)


class Parent(Entity):
    """Deletes a child within its own turn."""

    children: list[str] = []

    @handler
    def adopt(self, name: str) -> None:
        self.children.append(name)

    @handler
    def orphan(self, name: str, fail: bool = False) -> None:
        DELETING[0].delete(Account.ref(name))
        if fail:
            raise ValueError("changed its mind")


DELETING: list[EntityCelery] = []


def test_inside_a_turn_a_deletion_is_part_of_the_commit(store_url: str, cluster_name: str) -> None:
    entities = make_entities(store_url, cluster_name)
    entities.register(Parent)
    DELETING[:] = [entities]
    alice = Account.ref("alice")
    alice.deposit.send(5)
    Parent.ref("p").orphan.send("alice", fail=True)
    drain(entities)
    assert entities.exists(alice)

    Parent.ref("p").orphan.send("alice")
    drain(entities)
    assert not entities.exists(alice)
    entities.close()


def test_no_handler_may_be_named_like_the_deletion(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match=r"'entity\.delete' is reserved"):

        @entities.register
        class Reserved(Entity):
            @handler(name="entity.delete")
            def remove(self) -> None: ...


def test_only_what_a_reference_names_can_be_deleted(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="expected a reference such as"):
        entities.delete("Account/alice")
