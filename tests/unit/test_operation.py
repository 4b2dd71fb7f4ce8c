"""Arguments and results: checked when sent and again when handled, and the error names the argument."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery.exceptions import ConfigurationError, MalformedMessage, SerializationFailed
from entitycelery.operation import HandlerOptions, Operation
from tests.naming import shown


class Line(msgspec.Struct):
    sku: str
    count: int = 1


@dataclasses.dataclass
class Order:
    lines: list[Line]
    at: datetime
    gift: bool = False


def operation(function: Callable[..., Any]) -> Operation:
    return Operation("Shop", function.__name__, function, HandlerOptions())


def buy(self: object, order: Order, price: float, *, note: str = "none", mode: Literal["now", "later"] = "now") -> int:
    return 1


def untyped(self, anything, more=5):  # type: ignore[no-untyped-def]
    return anything


BUY = operation(buy)
UNTYPED = operation(untyped)
ORDER = Order([Line("book", 2)], datetime(2026, 1, 2, tzinfo=UTC))
WRITTEN = b'{"order":{"at":"2026-01-02T00:00:00Z","gift":false,"lines":[{"count":2,"sku":"book"}]},"price":5}'


def malformed(call: Callable[[], object]) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        call()
    return caught.value


def test_arguments_are_written_by_name_in_one_form_however_they_are_given() -> None:
    """A wire format: this is what lies in the store and what fingerprints are of."""
    assert BUY.encode((ORDER, 5), {}) == WRITTEN
    assert BUY.encode((), {"price": 5, "order": ORDER}) == WRITTEN


def test_arguments_come_back_as_they_are_annotated() -> None:
    assert BUY.decode(WRITTEN) == {"order": ORDER, "price": 5.0}


def test_a_default_belongs_to_the_handler_and_not_to_the_message() -> None:
    assert b"note" not in BUY.encode((ORDER, 5), {})
    assert "note" not in BUY.decode(WRITTEN)


def test_an_argument_that_equals_its_default_is_sent_as_given() -> None:
    assert BUY.decode(BUY.encode((ORDER, 5), {"note": "none"}))["note"] == "none"


@pytest.mark.parametrize(
    ("args", "kwargs", "argument"),
    [
        ((ORDER,), {}, "price"),
        ((), {"price": 5}, "order"),
        ((ORDER, "5"), {}, "price"),
        ((ORDER, None), {}, "price"),
        ((5, 5), {}, "order"),
        ((Order([], datetime(2026, 1, 2)), "x"), {}, "price"),
        ((ORDER, 5), {"note": 5}, "note"),
        ((ORDER, 5), {"mode": "never"}, "mode"),
        ((ORDER, 5), {"colour": "red"}, "colour"),
        ((ORDER, 5), {"price": 6}, "price"),
        (({"lines": [{"sku": 5}], "at": "2026-01-02T00:00:00Z"}, 5), {}, "order"),
        (({"lines": [], "at": "soon"}, 5), {}, "order"),
        ((ORDER, math.nan), {}, "price"),
        ((ORDER, math.inf), {}, "price"),
        ((ORDER, 5), {"note": "a\0b"}, "note"),
        ((ORDER, 5), {"note": "\ud800"}, "note"),
        ((ORDER, object()), {}, "price"),
    ],
    ids=lambda value: shown(value)[:40],
)
def test_a_call_that_does_not_fit_names_the_argument(args: Any, kwargs: dict[str, Any], argument: str) -> None:
    error = malformed(lambda: BUY.encode(args, kwargs))

    assert error.argument == argument
    assert repr(argument) in str(error)
    assert "Shop.buy" in str(error)


def test_too_many_positional_arguments_are_refused() -> None:
    assert "takes 2 positional arguments, got 3" in str(malformed(lambda: BUY.encode((ORDER, 5, "note"), {})))


def test_a_nested_fault_says_where_it_is() -> None:
    error = malformed(lambda: BUY.decode(b'{"order":{"lines":[{"sku":"a"},{"sku":5}],"at":"2026-01-02T00:00:00Z"}}'))

    assert "order.lines[1].sku" in str(error)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"text"', b"\xff"])
def test_a_payload_that_is_no_object_is_malformed(data: bytes) -> None:
    assert "Shop.buy" in str(malformed(lambda: BUY.decode(data)))


def test_what_is_checked_when_sent_is_checked_again_when_handled() -> None:
    def older(self: object, amount: int) -> None: ...
    def newer(self: object, amount: int, currency: str) -> None: ...

    sent = operation(older).encode((5,), {})

    assert malformed(lambda: operation(newer).decode(sent)).argument == "currency"


def test_a_parameter_added_with_a_default_understands_older_messages() -> None:
    def older(self: object, amount: int) -> None: ...
    def newer(self: object, amount: int, currency: str = "EUR") -> None: ...

    assert operation(newer).decode(operation(older).encode((5,), {})) == {"amount": 5}


def test_parameters_without_annotations_take_anything_that_json_carries() -> None:
    value = {"a": [1, None, "x", {"b": 1.5}]}

    assert UNTYPED.decode(UNTYPED.encode((value,), {})) == {"anything": value}
    assert UNTYPED.decode(UNTYPED.encode((value, None), {})) == {"anything": value, "more": None}


@given(st.integers() | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_an_untyped_argument_survives(value: Any) -> None:
    assert UNTYPED.decode(UNTYPED.encode((value,), {})) == {"anything": value}


def test_sets_are_written_in_one_order() -> None:
    def tag(self: object, names: set[str]) -> None: ...

    letters = "abcdefghijklmnopqrstuvwxyz"

    data = operation(tag).encode((set(letters),), {})

    assert data == b'{"names":[%b]}' % ",".join(f'"{letter}"' for letter in letters).encode()
    assert operation(tag).decode(data) == {"names": set(letters)}


def test_nesting_that_is_too_deep_names_the_argument() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]

    assert malformed(lambda: UNTYPED.encode((1,), {"more": deep})).argument == "more"


def test_integers_of_any_size_are_carried() -> None:
    def count(self: object, n: int) -> int:
        return n

    assert operation(count).decode(operation(count).encode((10**40,), {})) == {"n": 10**40}


def test_keyword_only_parameters_are_refused_by_position() -> None:
    def move(self: object, *, to: str) -> None: ...

    assert operation(move).decode(operation(move).encode((), {"to": "x"})) == {"to": "x"}
    assert "takes 0 positional arguments" in str(malformed(lambda: operation(move).encode(("x",), {})))


def test_a_result_is_written_and_read_as_annotated() -> None:
    def order(self: object) -> Order:
        return ORDER

    assert operation(order).decode_result(operation(order).encode_result(ORDER)) == ORDER


@pytest.mark.parametrize(
    ("annotation", "result"),
    [
        (int, "five"),
        (int, None),
        (None, 5),
        (str, 5),
        (float, math.nan),
        (float, math.inf),
        (dict, {"a": math.nan}),
        (str, "a\0b"),
        (str, "\ud800"),
        (Any, object()),
        (timedelta, "soon"),
    ],
    ids=shown,
)
def test_a_result_that_is_not_what_was_promised_is_refused(annotation: Any, result: Any) -> None:
    def answer(self: object) -> Any: ...

    answer.__annotations__["return"] = annotation

    with pytest.raises(SerializationFailed, match=r"^the result of Shop\.answer"):
        operation(answer).encode_result(result)


def test_a_stored_result_of_an_older_handler_is_refused_when_read() -> None:
    with pytest.raises(SerializationFailed, match=r"the stored result of Shop\.buy"):
        BUY.decode_result('"text"')


def test_the_wire_name_may_differ_from_the_method() -> None:
    renamed = Operation("Shop", "buy", buy, HandlerOptions(name="purchase"))

    assert (renamed.name, renamed.attribute, renamed.label) == ("purchase", "buy", "Shop.purchase")


def star(self: object, *amounts: int) -> None: ...
def double_star(self: object, **amounts: int) -> None: ...
def by_position(self: object, amount: int, /) -> None: ...
def unresolved(self: object, amount: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def two_structs(self: object, amount: Line | Other) -> None: ...


class Other(msgspec.Struct):
    n: int = 0


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (star, r"Shop\.star takes \*amounts"),
        (double_star, r"Shop\.double_star takes \*\*amounts"),
        (by_position, r"Shop\.by_position takes 'amount' by position only"),
        (unresolved, r"an annotation of Shop\.unresolved cannot be resolved: name 'Nowhere'"),
        (two_structs, r"an annotation of Shop\.two_structs is of no type that JSON can carry"),
    ],
)
def test_a_handler_that_no_message_could_call_is_refused(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        operation(function)
