"""An entity at hand: a plain object, without any app."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from entitycelery import Entity, handler, query
from entitycelery.exceptions import ConfigurationError


class Account(Entity):
    LIMIT: ClassVar[int] = 100
    balance: int = 0
    owner: str = "nobody"

    @handler
    def deposit(self, amount: int) -> int:
        """Put money in."""
        self.balance += amount
        return self.balance

    @handler
    def deposit_twice(self, amount: int) -> int:
        self.deposit(amount)
        return self.deposit(amount)

    @handler(max_retries=1)
    async def later(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @query
    def doubled(self, times: int = 2) -> int:
        return self.balance * times

    @property
    def is_rich(self) -> bool:
        return self.balance > 100

    @is_rich.setter
    def is_rich(self, rich: bool) -> None:
        self.balance = 1000 if rich else 0


def test_handlers_are_called_on_an_entity_made_by_hand() -> None:
    account = Account(balance=5)

    assert account.deposit(5) == 10
    assert account.deposit_twice(amount=5) == 20
    assert account.balance == 20


def test_queries_are_called_on_an_entity_made_by_hand() -> None:
    assert Account(balance=5).doubled() == 10
    assert Account(balance=5).doubled(times=3) == 15


def test_async_handlers_are_awaited_on_an_entity_made_by_hand() -> None:
    account = Account(balance=5)

    assert asyncio.run(account.later(5)) == 10


def test_an_exception_of_a_handler_reaches_the_caller() -> None:
    with pytest.raises(TypeError):
        Account().deposit("five")  # type: ignore[arg-type]


def test_assigning_an_undeclared_attribute_is_an_error_that_names_it() -> None:
    account = Account()

    with pytest.raises(AttributeError, match=r"Account has no state field 'balanse': declare it"):
        account.balanse = 5  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="LIMIT"):
        account.LIMIT = 5  # type: ignore[misc]
    with pytest.raises(AttributeError, match="deposit"):
        account.deposit = 5  # type: ignore[assignment]


def test_private_attributes_and_properties_can_be_assigned() -> None:
    account = Account()

    account._cache = 5  # type: ignore[attr-defined]
    account.is_rich = True

    assert account._cache == 5  # type: ignore[attr-defined]
    assert account.balance == 1000


def test_an_unknown_field_is_refused_when_an_entity_is_made() -> None:
    with pytest.raises(TypeError, match=r"Account has no state field 'balanse'; it has: balance, owner"):
        Account(balanse=5)  # type: ignore[call-arg]


def test_state_is_given_by_name() -> None:
    with pytest.raises(TypeError):
        Account(5)  # type: ignore[misc]


def test_entities_of_one_class_and_state_are_equal() -> None:
    assert Account(balance=5) == Account(balance=5)
    assert Account(balance=5) != Account(balance=6)
    assert Account() != "Account()"


def test_an_entity_shows_its_state() -> None:
    assert repr(Account(balance=5)) == "Account(balance=5, owner='nobody')"


def test_an_entity_made_by_hand_has_no_turn() -> None:
    with pytest.raises(ConfigurationError, match=r"self\.turn exists only while a message of Account is handled"):
        Account().turn


@pytest.mark.parametrize("verb", ["send", "ask", "delay", "options"])
def test_a_verb_on_an_entity_made_by_hand_says_what_to_write(verb: str) -> None:
    with pytest.raises(AttributeError, match=rf"use Account\.ref\(id\)\.deposit\.{verb}"):
        getattr(Account().deposit, verb)


def test_a_class_that_is_not_registered_has_no_references() -> None:
    with pytest.raises(ConfigurationError, match=r"Account is not registered: put @entities\.register"):
        Account.ref("alice")


def test_a_handler_keeps_its_name_and_docstring() -> None:
    assert Account.deposit.__name__ == "deposit"
    assert Account.deposit.__doc__ == "Put money in."
