"""The typed state of an entity: defaults, loading, unknown fields, and what is refused by its field's name."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery import Entity, field
from entitycelery.exceptions import ConfigurationError, SerializationFailed, StateConflict
from entitycelery.state import StateModel, fields_of


class Point(msgspec.Struct):
    x: int = 0


class Size(msgspec.Struct):
    width: int = 0


class Everything(Entity):
    LIMIT: ClassVar[int] = 5
    other_limit: ClassVar = 6
    _cache: int = 7
    balance: int = 0
    name: str = "?"
    tags: list[str] = []
    seen: dict[str, int] = field(default_factory=dict)
    at: Point = Point()
    pair: tuple[list[int], int] = ([], 0)
    requested: Optional[int] = None  # noqa: UP045 - the old spelling works too
    rate: float = field(default=0.5)
    positive: Annotated[int, msgspec.Meta(ge=0)] = 0


class Derived(Everything):
    extra: str = "more"
    balance: int = 10


def model(cls: type, version: int = 1) -> StateModel:
    return StateModel(cls, cls.__name__, fields_of(cls), version)


EVERYTHING = model(Everything)


def test_class_variables_and_private_names_are_no_state() -> None:
    assert EVERYTHING.fields == (
        "balance",
        "name",
        "tags",
        "seen",
        "at",
        "pair",
        "requested",
        "rate",
        "positive",
    )


def test_a_new_entity_has_its_defaults() -> None:
    new = EVERYTHING.new()

    assert (new.balance, new.name, new.tags, new.seen, new.at, new.requested, new.rate) == (
        0,
        "?",
        [],
        {},
        Point(),
        None,
        0.5,
    )


@pytest.mark.parametrize("make", [EVERYTHING.new, Everything, lambda: EVERYTHING.load("{}", 1)])
def test_each_entity_gets_its_own_copy_of_a_mutable_default(make: Any) -> None:
    one, other = make(), make()

    one.tags.append("a")
    one.seen["a"] = 1
    one.at.x = 5
    one.pair[0].append(1)

    assert (other.tags, other.seen, other.at, other.pair) == ([], {}, Point(), ([], 0))
    assert (make().tags, make().seen, make().at, make().pair) == ([], {}, Point(), ([], 0))


def test_a_subclass_inherits_fields_and_may_give_them_other_defaults() -> None:
    derived = model(Derived).new()

    assert (derived.balance, derived.extra, derived.name) == (10, "more", "?")


def test_added_fields_take_their_default_on_old_rows() -> None:
    loaded = EVERYTHING.load('{"balance": 5}', 1)

    assert (loaded.balance, loaded.name, loaded.tags) == (5, "?", [])


def test_fields_unknown_to_the_running_code_survive_a_round_trip() -> None:
    stored = '{"later": {"deep": [1, null, "ü"]}, "balance": 5, "also": "x"}'

    loaded = EVERYTHING.load(stored, 1)
    loaded.balance += 1
    written = msgspec.json.decode(EVERYTHING.dump(loaded))

    assert written["later"] == {"deep": [1, None, "ü"]}
    assert written["also"] == "x"
    assert written["balance"] == 6


def test_the_order_of_the_fields_is_that_of_the_class() -> None:
    assert list(msgspec.json.decode(EVERYTHING.dump(EVERYTHING.new()))) == list(EVERYTHING.fields)


@given(
    st.builds(
        Everything,
        balance=st.integers(-(2**63), 2**63 - 1),
        name=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))),
        tags=st.lists(st.just("t"), max_size=3),
        seen=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
        at=st.builds(Point, st.integers(0, 9)),
        requested=st.none() | st.integers(0, 9),
        rate=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_a_state_is_loaded_as_it_was_written(entity: Everything) -> None:
    assert EVERYTHING.load(EVERYTHING.dump(entity), 1) == entity


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("balance", "5"),
        ("balance", 1.5),
        ("balance", None),
        ("balance", True),
        ("name", 5),
        ("tags", "abc"),
        ("tags", [1]),
        ("seen", {"a": "b"}),
        ("at", {"x": "a"}),
        ("positive", -1),
        ("requested", "soon"),
    ],
)
def test_a_state_that_would_not_load_again_is_refused_naming_the_field(name: str, value: Any) -> None:
    entity = EVERYTHING.new()
    setattr(entity, name, value)

    with pytest.raises(StateConflict, match=rf"the state that the handler left of Everything .* field '{name}'"):
        EVERYTHING.dump(entity)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("rate", math.nan, "NaN"),
        ("rate", math.inf, "NaN or an infinity"),
        ("requested", math.nan, "NaN"),
        ("name", "a\0b", "NUL"),
        ("name", "\ud800", "surrogates"),
        ("seen", {"a": object()}, "unsupported"),
    ],
)
def test_a_state_that_cannot_be_written_is_refused_naming_the_field(name: str, value: Any, why: str) -> None:
    entity = EVERYTHING.new()
    setattr(entity, name, value)

    with pytest.raises(SerializationFailed, match=f"^field '{name}' of Everything .*{why}"):
        EVERYTHING.dump(entity)


def test_a_state_whose_field_was_deleted_is_refused_naming_the_field() -> None:
    entity = EVERYTHING.new()
    del entity.name

    with pytest.raises(StateConflict, match="deleted the field 'name' of Everything"):
        EVERYTHING.dump(entity)


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ('{"balance": "five"}', "'balance'"),
        ('{"seen": {"a": null}}', "'seen'"),
        ('{"at": {"x": []}}', "'at'"),
        ('{"positive": -1}', "'positive'"),
        ("[]", "top level"),
        ("null", "top level"),
        ('{"balance": ', "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_stored_state_that_cannot_be_loaded_is_refused_naming_the_field(stored: str, named: str) -> None:
    with pytest.raises(StateConflict, match=rf"a stored state of Everything .*{named}"):
        EVERYTHING.load(stored, 1)


def test_an_entity_is_restored_without_calling_init() -> None:
    class Loud(Entity):
        n: int = 0

        def __init__(self, **values: Any) -> None:
            raise AssertionError("called")

    assert model(Loud).load('{"n": 3}', 1).n == 3
    assert model(Loud).new().n == 0


def test_a_field_without_a_default_is_refused() -> None:
    class Bare(Entity):
        balance: int

    with pytest.raises(ConfigurationError, match=r"Bare\.balance needs a default"):
        model(Bare)


@pytest.mark.parametrize(
    ("annotation", "default", "why"),
    [
        (complex, 0j, r"the default of Odd\.n cannot be written"),
        (int, "five", r"the default of Odd\.n does not fit its annotation"),
        (str, None, r"the default of Odd\.n does not fit its annotation"),
        (float, math.nan, r"the default of Odd\.n cannot be written.*NaN"),
        (Point | Size, Point(), "Odd has a field that cannot be stored"),
    ],
)
def test_a_field_that_could_never_be_stored_is_refused(annotation: Any, default: Any, why: str) -> None:
    odd = type("Odd", (Entity,), {"__annotations__": {"n": annotation}, "n": default})

    with pytest.raises(ConfigurationError, match=why):
        model(odd)


def test_a_default_factory_is_not_called_before_there_is_an_entity() -> None:
    class Late(Entity):
        n: int = field(default_factory=lambda: calls.append(1) or 5)

    calls: list[int] = []
    late = model(Late)

    assert calls == []
    assert late.new().n == 5


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    class Lost(Entity):
        n: Nowhere = 0  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"an annotation of Lost cannot be resolved.*Nowhere"):
        model(Lost)
