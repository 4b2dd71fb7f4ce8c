"""JSON as the store keeps it: canonical, and refused where it would not come back as it was."""

from __future__ import annotations

import dataclasses
import enum
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery import codec
from entitycelery.exceptions import SerializationFailed
from tests.naming import shown

NAN, INFINITY = math.nan, math.inf

# What JSON carries; NUL and lone surrogates are refused, so they are left out.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)


class Point(msgspec.Struct):
    x: float
    label: str | None = None


@dataclasses.dataclass
class Line:
    points: list[Point]
    width: float | None = None


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert codec.from_json(codec.to_json(value, "it")) == value


@given(st.dictionaries(texts, scalars), st.randoms())
def test_canonical_json_does_not_depend_on_the_order_of_a_dict(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)

    assert codec.to_canonical_json(dict(items), "it") == codec.to_canonical_json(value, "it")


def test_canonical_json_sorts_nested_objects_and_writes_no_spaces() -> None:
    """A wire format: fingerprints in the store are hashes of these very bytes."""
    value = {"b": [{"z": 1, "a": "ü"}], "a": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "c": 1.0}

    data = codec.to_canonical_json(value, "it")

    assert data == '{"a":"2026-01-02T03:04:05Z","b":[{"a":"ü","z":1}],"c":1.0}'.encode()


@pytest.mark.parametrize(
    "value",
    [
        NAN,
        INFINITY,
        -INFINITY,
        [1.0, NAN],
        {"a": {"b": [INFINITY]}},
        {"a": None, "b": NAN},
        {"a": "null", "b": NAN},
        Point(x=NAN),
        Line(points=[Point(x=1.0), Point(x=-INFINITY)]),
        [2**70, NAN],
        (NAN, None),
    ],
    ids=shown,
)
def test_nan_and_infinity_are_refused_wherever_they_hide(value: Any) -> None:
    with pytest.raises(SerializationFailed, match=r"^the result cannot be written as JSON: .*NaN or an infinity"):
        codec.to_json(value, "the result")
    with pytest.raises(SerializationFailed, match="NaN or an infinity"):
        codec.to_canonical_json(value, "the result")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": None},
        [None, {"a": None}],
        Line(points=[Point(x=1.0)]),
        {"text": "null"},
        # Bytes that look like a packed infinity, but are not one.
        {"look": None, "alike": b"\xcb\x7f\xf0" * 3},
        {"big": 2**70, "none": None},
        {"raw": msgspec.Raw(b"null"), "alike": b"\xcb\xff\xf8"},
    ],
    ids=shown,
)
def test_none_and_the_word_null_are_no_numbers(value: Any) -> None:
    assert codec.to_json(value, "it") == msgspec.json.encode(value)


@given(st.recursive(scalars | st.just(NAN) | st.just(INFINITY), lambda inner: st.lists(inner), max_leaves=10))
def test_a_list_is_refused_exactly_if_a_number_in_it_is_not_finite(value: Any) -> None:
    def finite(part: Any) -> bool:
        if isinstance(part, list):
            return all(map(finite, part))
        return not isinstance(part, float) or math.isfinite(part)

    try:
        codec.to_json(value, "it")
        accepted = True
    except SerializationFailed:
        accepted = False

    assert accepted is finite(value)


@pytest.mark.parametrize("value", ["a\0b", {"a\0": 1}, ["\0"], "\\\0", "\\\\\0"], ids=ascii)
def test_nul_characters_are_refused(value: Any) -> None:
    with pytest.raises(SerializationFailed, match=r"^the state contains a NUL character"):
        codec.to_json(value, "the state")


@pytest.mark.parametrize("value", ["\\u0000", "a\\u0000b", "\\\\u0000", "C:\\u0000\\new"], ids=ascii)
def test_a_backslash_before_u0000_is_not_a_nul_character(value: str) -> None:
    assert codec.from_json(codec.to_json(value, "it")) == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("\ud800", "surrogates"),
        (object(), "unsupported"),
        ({1j: 2}, "keys"),
        ({None: 1}, "keys"),
        (type("Subclass", (float,), {})(1.0), "unsupported"),
    ],
    ids=shown,
)
def test_a_value_that_json_cannot_carry_is_refused_with_the_reason(value: Any, why: str) -> None:
    with pytest.raises(SerializationFailed, match=f"^it cannot be written as JSON: .*{why}"):
        codec.to_json(value, "it")


def test_nesting_that_is_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]

    with pytest.raises(SerializationFailed, match="nested too deeply"):
        codec.to_json(deep, "it")


def test_an_object_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(SerializationFailed, match="contains itself"):
        codec.to_json(loop, "it")


def test_integers_of_any_size_survive() -> None:
    for number in (2**63, -(2**63) - 1, 10**100):
        assert codec.from_json(codec.to_json([number], "it")) == [number]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (datetime(2026, 1, 2, tzinfo=UTC), b'"2026-01-02T00:00:00Z"'),
        (date(2026, 1, 2), b'"2026-01-02"'),
        (timedelta(minutes=90), b'"PT5400S"'),
        (Decimal("1.10"), b'"1.10"'),
        (UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
        (b"\0\xff", b'"AP8="'),
        (enum.Enum("Colour", {"RED": "red"})("red"), b'"red"'),
        (Point(1.5), b'{"x":1.5,"label":null}'),
        (Line([], 2.0), b'{"points":[],"width":2.0}'),
    ],
)
def test_how_typed_values_are_written(value: Any, written: bytes) -> None:
    """A wire format: states and messages of every release look like this."""
    assert codec.to_json(value, "it") == written


def test_the_place_of_a_validation_error_is_the_field_at_the_top() -> None:
    class Order(msgspec.Struct):
        lines: list[Point]
        note: str = ""

    def place(data: bytes) -> tuple[str | None, str]:
        with pytest.raises(msgspec.ValidationError) as caught:
            msgspec.json.decode(data, type=Order)
        return codec.place_of(caught.value)

    assert place(b'{"lines":[],"note":5}') == ("note", "Expected `str`, got `int`")
    assert place(b'{"lines":[{"x":"a"}]}') == ("lines", "Expected `float`, got `str` (at lines[0].x)")
    assert place(b"{}")[0] == "lines"
    assert place(b"[]")[0] is None


def test_unknown_fields_are_merged_behind_the_known_ones() -> None:
    extra = {"later": msgspec.Raw(b'{"deep":[1,2]}')}

    assert codec.merged(b'{"n":1}', extra) == b'{"n":1,"later":{"deep":[1,2]}}'
    assert codec.merged(b"{}", extra) == b'{"later":{"deep":[1,2]}}'
    assert codec.merged(b'{"n":1}', {}) == b'{"n":1}'


@given(st.dictionaries(texts.filter(lambda name: name != "n"), values))
def test_raw_fields_come_back_as_they_were(extra: dict[str, Any]) -> None:
    raw = codec.raw_fields(codec.to_json(extra, "it"))

    merged = codec.from_json(codec.merged(b'{"n":1}', raw))

    assert merged == {"n": 1, **extra}
