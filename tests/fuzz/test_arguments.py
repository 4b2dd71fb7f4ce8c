"""Arguments: whatever is sent comes back as it was, or is refused in a sentence before anything is stored."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, EntityError, MalformedMessage
from tests.client.support import drain
from tests.fuzz.support import Box, assert_sentence, assert_served, empty, pending
from tests.naming import shown

FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(
        ["\0", "\ud800", "a\udfffb", "\ufeff", "\u2028", '"', "\\u0000", "\\", "null", "NaN", "\x7f", "\x1b"]
    )
)
keys = st.text(st.characters()) | st.sampled_from(["", "\0", "\udcff", "__proto__", "value", '"']) | st.integers()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


class Wild:
    """Nothing that JSON knows."""


LOOP: list[Any] = []
LOOP.append(LOOP)

REFUSED: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": [1.0, -math.inf],
    "NaN as decimal": [None, Decimal("NaN"), math.nan],
    "NUL": "a\0b",
    "NUL in a key": {"a\0b": 1},
    "lone surrogate": "\ud800",
    "lone surrogate in a key": {"\udcff": 1},
    "an integer of 5,000 digits": 10**5_000,
    "an object": Wild(),
    "a class": Wild,
    "a function": len,
    "a set of objects": {Wild()},
    "a path": Path("/"),
    "a complex number": 1j,
    "a key of bytes": {b"\xff\x00": 1},
    "a key of a tuple": {(1, 2): 1},
    "twice the same key": {1: "a", "1": "b"},
    "itself": LOOP,
    "101 levels": nested(100),
    "900 levels": nested(900),
    "100,000 levels": nested(100_000),
    "2 MiB": "x" * (2 * 1024 * 1024),
    "a raw text that is no JSON": msgspec.Raw(b"}{"),
    "a raw lone surrogate": msgspec.Raw(b'"\\ud800"'),
    "a raw number beyond any": msgspec.Raw(b"1e999999"),
    "a raw text that is no UTF-8": msgspec.Raw(b'"\xff"'),
    "an empty raw text": msgspec.Raw(b""),
}

ACCEPTED: dict[str, Any] = {
    "99 levels": nested(99),
    "an integer beyond 64 bits": 2**200,
    "an integer of 4,000 digits": 10**3_999,
    "the largest float": sys.float_info.max,
    "the smallest float": 5e-324,
    "almost 1 MiB": "x" * (1024 * 1024 - 20),
    "text of all planes": "\x01\x7f\u2028\ufeff\uffff\U0010ffff",
    "an escaped NUL": "\\u0000",
    "brackets in a text": "[" * 1_000 + '"\\' + "{" * 1_000,
    "many brackets": [[{}]] * 1_000,
    "no name": {"": {"": 0}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_at_the_sender_and_nothing_is_stored(name: str, entities: EntityCelery) -> None:
    with pytest.raises(MalformedMessage) as refused:
        Box.ref("a").put.send(REFUSED[name])

    assert_sentence(refused.value)
    assert pending(entities) == []
    assert_served(entities, "a")


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_comes_back_as_it_was(name: str, entities: EntityCelery) -> None:
    sent = Box.ref("a").echo.send(ACCEPTED[name])
    kept = Box.ref("a").put.send(ACCEPTED[name])
    drain(entities)

    assert same(sent.result(timeout_s=0), ACCEPTED[name])
    assert kept.result(timeout_s=0) is None
    assert same(entities.state(Box.ref("a")).content, ACCEPTED[name])


@FUZZ
@given(value=anything)
def test_any_value_comes_back_as_it_was_or_is_refused_in_a_sentence(value: Any, entities: EntityCelery) -> None:
    try:
        sent = Box.ref("a").echo.send(value)
    except EntityError as refused:
        assert_sentence(refused)
        return
    drain(entities)

    assert same(sent.result(timeout_s=0), value)


@FUZZ
@given(args=st.lists(anything, max_size=3), kwargs=st.dictionaries(st.text(max_size=5), anything, max_size=3))
def test_any_call_is_stored_or_refused_in_a_sentence(
    args: list[Any], kwargs: dict[str, Any], entities: EntityCelery
) -> None:
    empty(entities)
    try:
        Box.ref("a").add.send(*args, **kwargs)
    except MalformedMessage as refused:
        assert_sentence(refused)
        assert pending(entities) == []
    else:
        assert len(pending(entities)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"delay_s": math.nan},
        {"delay_s": math.inf},
        {"delay_s": -1},
        {"delay_s": 1e300},
        {"delay_s": 10**400},
        {"delay_s": "soon"},
        {"delay_s": timedelta.max},
        {"delay_s": timedelta(days=-1)},
        {"expires_s": math.nan},
        {"expires_s": timedelta.max},
        {"deliver_at": datetime(2030, 1, 1)},
        {"deliver_at": datetime.max},
        {"deliver_at": "2030-01-01"},
        {"deliver_at": 5},
        {"key": ""},
        {"key": 5},
        {"key": b"x"},
        {"connection": "postgresql://"},
        {"connection": object()},
    ],
    ids=shown,
)
def test_a_call_option_that_means_nothing_is_refused_in_a_sentence(
    options: dict[str, Any], entities: EntityCelery
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Box.ref("a").add.options(**options).send(1)

    assert_sentence(refused.value)
    assert pending(entities) == []


@pytest.mark.parametrize(
    "options",
    [
        {"deliver_at": datetime.min.replace(tzinfo=UTC)},
        {"deliver_at": datetime.max.replace(tzinfo=UTC)},
        {"deliver_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=23)))},
        {"deliver_at": datetime.max.replace(tzinfo=timezone(-timedelta(hours=23)))},
        {"delay_s": 9_999_999_999},
        {"expires_s": 9_999_999_999},
        {"expires_s": 0},
        {"delay_s": 1e-300},
        {"key": "\ud800"},
        {"key": "a\0b"},
        {"key": "x" * 10_000_000},
        {"task_id": "\ud800"},
        {"task_id": "x" * 10_000_000},
    ],
    ids=lambda options: shown(options)[:60],
)
def test_a_call_option_of_extreme_value_is_kept_and_wedges_nothing(
    options: dict[str, Any], entities: EntityCelery
) -> None:
    task_id = options.pop("task_id", None)
    call = Box.ref("a").add.options(**options)

    sent = call.apply_async((1,), task_id=task_id) if task_id else call.send(1)

    drain(entities)
    assert entities.reply(sent.id) is not None or [row[0] for row in pending(entities)] == [sent.id]
    own, other = Box.ref("a").add.send(1), Box.ref("b").add.send(1)
    drain(entities)
    assert isinstance(own.result(timeout_s=0), int)
    assert isinstance(other.result(timeout_s=0), int)


def test_more_than_one_transaction_can_take_is_refused_at_the_sender(entities: EntityCelery) -> None:
    call = Box.ref("a").put.prepare("x" * 1_000_000)

    with pytest.raises(MalformedMessage, match=r"^150 messages in one transaction have 150,\d+,\d+ bytes") as refused:
        entities.send_many([call] * 150)

    assert_sentence(refused.value)
    assert pending(entities) == []


def same(got: Any, sent: Any) -> bool:
    """Whether a value came back, as JSON has it.

    Tuples are lists there and keys are text; and where nothing is annotated, jsonb gives back a whole float as an int.
    """
    if isinstance(sent, float) and isinstance(got, int) and not isinstance(got, bool):
        return float(got) == sent
    if isinstance(sent, list | tuple):
        return isinstance(got, list) and len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, dict):
        wanted = {str(key): value for key, value in sent.items()}
        return isinstance(got, dict) and got.keys() == wanted.keys() and all(same(got[k], wanted[k]) for k in wanted)
    return type(got) is type(sent) and got == sent
