"""`@upgrade`: states of older classes are brought up to date when they are loaded."""

from __future__ import annotations

from typing import Any

import pytest

from entitycelery import Entity, upgrade
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError, StateConflict
from entitycelery.state import StateModel


class Account(Entity):
    cents: int = 0
    currency: str = "EUR"

    @upgrade(from_version=1)
    def rename(state: dict[str, Any]) -> dict[str, Any]:
        state["money"] = state.pop("balance", 0)
        return state

    @upgrade(from_version=2)
    @staticmethod
    def to_cents(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "cents": state.pop("money") * 100}


def model_of(cls: type, version: int) -> StateModel:
    return EntityType(cls, state_version=version).model


def test_every_step_from_the_stored_version_on_is_run_in_order() -> None:
    model = model_of(Account, 3)

    assert model.load('{"balance": 5}', 1).cents == 500
    assert model.load('{"money": 7}', 2).cents == 700
    assert model.load('{"cents": 9}', 3).cents == 9


def test_unknown_fields_survive_an_upgrade() -> None:
    model = model_of(Account, 3)

    entity = model.load('{"balance": 5, "later": [1]}', 1)

    assert b'"later":[1]' in model.dump(entity)


def test_a_state_of_a_newer_version_is_refused() -> None:
    with pytest.raises(StateConflict, match="written as version 4, this code knows versions up to 3"):
        model_of(Account, 3).load("{}", 4)


def test_a_missing_step_is_named() -> None:
    class Gap(Entity):
        n: int = 0

    with pytest.raises(StateConflict, match=r"there is no @upgrade\(from_version=1\)"):
        model_of(Gap, 2).load("{}", 1)


def test_a_step_that_raises_is_named() -> None:
    class Broken(Entity):
        n: int = 0

        @upgrade(from_version=1)
        def fail(state: dict[str, Any]) -> dict[str, Any]:
            raise KeyError("balance")

    with pytest.raises(StateConflict, match=r"Broken: @upgrade\(from_version=1\) failed: KeyError\('balance'\)"):
        model_of(Broken, 2).load("{}", 1)


def test_a_step_that_returns_nothing_is_refused() -> None:
    class Silent(Entity):
        n: int = 0

        @upgrade(from_version=1)
        def forget(state: dict[str, Any]) -> dict[str, Any]:
            state["n"] = 1  # and no return
            return None  # type: ignore[return-value]

    with pytest.raises(StateConflict, match="Silent"):
        model_of(Silent, 2).load("{}", 1)


def test_a_step_that_leaves_what_does_not_fit_names_the_field() -> None:
    class Wrong(Entity):
        n: int = 0

        @upgrade(from_version=1)
        def spoil(state: dict[str, Any]) -> dict[str, Any]:
            return {"n": "five"}

    with pytest.raises(StateConflict, match="field 'n'"):
        model_of(Wrong, 2).load("{}", 1)


def test_two_steps_from_one_version_are_refused() -> None:
    class Twice(Entity):
        @upgrade(from_version=1)
        def one(state: dict[str, Any]) -> dict[str, Any]:
            return state

        @upgrade(from_version=1)
        def two(state: dict[str, Any]) -> dict[str, Any]:
            return state

    with pytest.raises(ConfigurationError, match=r"two functions for @upgrade\(from_version=1\)"):
        EntityType(Twice, state_version=2)


def test_a_step_beyond_the_class_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="upgrades from version 2, but state_version is 2"):
        EntityType(Account, state_version=2)


def test_versions_begin_at_one() -> None:
    with pytest.raises(ConfigurationError, match="starts at 1"):
        upgrade(from_version=0)
    with pytest.raises(ConfigurationError, match="state_version must be at least 1"):
        EntityType(Account, state_version=0)
