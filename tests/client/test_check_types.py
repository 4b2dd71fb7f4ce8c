"""What is stored and no longer known to the code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from entitycelery import Entity, EntityCelery, UnknownKind, handler, upgrade
from entitycelery.message import Status
from tests.client.support import drain, make_entities
from tests.storage.support import change, commit_of, ended


def yesterday(entities: EntityCelery) -> None:
    """The types as they were."""

    @entities.register(state_version=2)
    class Cart(Entity):
        count: int = 0

        @handler
        def add(self) -> None:
            self.count += 1

        @handler
        def old(self) -> None: ...

    @entities.register
    class Gone(Entity):
        @handler
        def add(self) -> None: ...

    for n in range(3):
        Cart.ref(n).add.send()
    Gone.ref("1").add.send()
    drain(entities)
    Cart.ref(1).old.send()
    Cart.ref(2).old.options(delay_s=60).send()
    Gone.ref("1").add.send()
    entities.delete(Cart.ref(1))


@pytest.fixture
def today(store_url: str, cluster_name: str) -> Iterator[Callable[[], EntityCelery]]:
    """An app on a store that an older one has written to."""
    older = make_entities(store_url, cluster_name)
    yesterday(older)
    older.close()
    made: list[EntityCelery] = []

    def make() -> EntityCelery:
        made.append(make_entities(store_url, cluster_name))
        return made[-1]

    yield make
    for entities in made:
        entities.close()


def test_nothing_is_unknown_to_the_code_that_wrote_it(store_url: str, cluster_name: str) -> None:
    entities = make_entities(store_url, cluster_name)
    yesterday(entities)

    assert entities.check_types() == []
    entities.close()


def test_types_and_operations_that_are_gone_are_counted(today: Callable[[], EntityCelery]) -> None:
    entities = today()

    @entities.register(state_version=2)
    class Cart(Entity):
        count: int = 0

        @handler
        def add(self) -> None: ...

    assert entities.check_types() == [
        UnknownKind("message", "Cart", "old", None, 2, "Cart has no such operation"),
        UnknownKind("message", "Gone", "add", None, 1, "no such type"),
        UnknownKind("state", "Gone", None, 1, 1, "no such type"),
    ]


def states_of_cart(entities: EntityCelery) -> list[tuple[int | None, int, str]]:
    return [(one.state_version, one.count, one.why) for one in entities.check_types() if one.operation is None][:-1]


def test_states_of_newer_code_are_counted(today: Callable[[], EntityCelery]) -> None:
    entities = today()

    @entities.register
    class Cart(Entity): ...

    assert states_of_cart(entities) == [(2, 3, "written as version 2, this code knows versions up to 1")]


def test_states_that_no_upgrade_reaches_are_counted(today: Callable[[], EntityCelery]) -> None:
    entities = today()

    @entities.register(state_version=4)
    class Cart(Entity):
        @upgrade(from_version=3)
        def third(state: dict[str, object]) -> dict[str, object]:
            return state

    assert states_of_cart(entities) == [(2, 3, "there is no @upgrade(from_version=2)")]


def test_states_under_an_alias_are_counted_and_mail_to_it_is_known(today: Callable[[], EntityCelery]) -> None:
    entities = today()

    @entities.register(aliases=("Cart",), state_version=2)
    class Basket(Entity):
        @handler
        def old(self) -> None: ...

    assert states_of_cart(entities) == [(2, 3, "an alias of Basket: states are read under Basket only")]
    assert [one.type for one in entities.check_types() if one.operation] == ["Gone"]


def test_dead_letters_count_too(today: Callable[[], EntityCelery]) -> None:
    entities = today()
    [message] = [message for message in entities.messages() if message.address.type == "Gone"]
    with entities.store.drain_session(message.shard) as session:
        boxes = session.claim(10)
        change(entities.store, "DELETE FROM {message} WHERE type <> 'Gone'")
        for box in boxes:
            session.commit([commit_of(box, *(ended(mail, status=Status.DEAD) for mail in box.mail))], last=False)

    [letter] = [one for one in entities.check_types() if one.stored != "state"]
    assert (letter.stored, letter.type, letter.operation, letter.count) == ("dead letter", "Gone", "add", 1)
