"""References: small values that offer verbs and queries, and say what to write in place of anything else."""

from __future__ import annotations

import copy
import pickle

import pytest

from entitycelery import Entity, handler, query
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError
from entitycelery.ref import address_of
from entitycelery.registry import Registry


class Account(Entity):
    balance: int = 0

    @handler
    def deposit(self, amount: int) -> int:
        return amount

    @query
    def statement(self) -> int:
        return self.balance


Registry().add(EntityType(Account))


def test_references_of_one_address_are_equal_values() -> None:
    assert Account.ref("alice") == Account.ref("alice")
    assert Account.ref(17) == Account.ref("17")
    assert Account.ref("alice") != Account.ref("bob")
    assert len({Account.ref("alice"), Account.ref("alice"), Account.ref("bob")}) == 2


def test_a_reference_is_written_as_its_address() -> None:
    assert str(Account.ref("alice/1")) == "Account/alice/1"
    assert repr(Account.ref("alice")) == "<Ref Account/alice>"


def test_a_state_field_on_a_reference_says_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"Account/alice\.balance.*entities\.state\(ref\)\.balance.*@query"):
        Account.ref("alice").balance


def test_assigning_on_a_reference_says_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"Account/alice\.balance = .*change it in a handler of Account"):
        Account.ref("alice").balance = 5


def test_a_direct_call_on_a_reference_says_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"write \.deposit\.send\(\.\.\.\) or \.deposit\.ask\(\.\.\.\)"):
        Account.ref("alice").deposit(5)


def test_an_unknown_name_on_a_reference_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Account has no handler or query 'withdraw'"):
        Account.ref("alice").withdraw  # type: ignore[attr-defined]
    assert not hasattr(Account.ref("alice"), "withdraw")


@pytest.mark.parametrize("entity_id", ["", "a\0b", None, True, "x" * 2401, pytest.param(10**5000, id="huge")])
def test_a_bad_id_is_refused_before_anything_is_sent(entity_id: object) -> None:
    with pytest.raises(ConfigurationError, match="an entity id"):
        Account.ref(entity_id)  # type: ignore[arg-type]


def test_a_reference_survives_pickling_and_copying() -> None:
    ref = Account.ref("alice")

    for again in (pickle.loads(pickle.dumps(ref)), copy.copy(ref), copy.deepcopy(ref)):
        assert again == ref
        assert repr(again.deposit) == "<Call Account/alice deposit>"


def test_only_references_have_addresses() -> None:
    assert address_of(Account.ref("alice")) == ("Account", "alice")
    for other in ("Account/alice", Account(), None):
        with pytest.raises(ConfigurationError, match="expected a reference such as"):
            address_of(other)


def test_queries_keep_their_name() -> None:
    assert Account.statement.__name__ == "statement"
