"""Spans, events and log records by themselves."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from entitycelery import telemetry
from entitycelery.telemetry import JsonFormatter, Span, TurnFields, happened, listen, span


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.began_names: list[str] = []
        self.ended_spans: list[Span] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def began(self, span: Span) -> None:
        self.began_names.append(span.name)

    def ended(self, span: Span) -> None:
        self.ended_spans.append(span)

    def happened(self, name: str, fields: Mapping[str, Any]) -> None:
        self.events.append((name, fields))


@pytest.fixture
def heard() -> Iterator[Heard]:
    listener = Heard()
    stop = listen(listener)
    yield listener
    stop()


def test_span_knows_its_parent_its_fields_and_its_duration(heard: Heard) -> None:
    with span("outer") as outer, span("inner", size=1) as inner:
        inner.add(outcome="done")

    assert heard.began_names == ["outer", "inner"]
    assert heard.ended_spans == [inner, outer]
    assert inner.parent is outer
    assert outer.parent is None
    assert inner.fields == {"size": 1, "outcome": "done"}
    assert inner.duration_s is not None
    assert outer.duration_s is not None
    assert 0 <= inner.duration_s <= outer.duration_s


def test_span_ends_with_the_error_that_left_it(heard: Heard) -> None:
    error = ValueError("no")

    with pytest.raises(ValueError, match="no"), span("work"):
        raise error

    [ended] = heard.ended_spans
    assert ended.error is error
    with span("next") as following:
        assert following.parent is None


def test_event_has_a_name_and_fields(heard: Heard) -> None:
    happened("entity.wakeup", shards=["default.1"])

    assert heard.events == [("entity.wakeup", {"shards": ["default.1"]})]


def test_listener_that_stopped_hears_nothing() -> None:
    listener = Heard()
    listen(listener)()

    with span("work"):
        happened("event")

    assert (listener.began_names, listener.ended_spans, listener.events) == ([], [], [])


def test_listener_that_raises_is_logged_and_harms_nobody(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Heard):
        def began(self, span: Span) -> None:
            raise RuntimeError("exporter is down")

    stop = listen(Broken())
    try:
        with span("work"):
            pass
    finally:
        stop()

    assert [ended.name for ended in heard.ended_spans] == ["work"]
    assert "exporter is down" in caplog.text


def record(message: str = "hello", *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("shop").makeRecord(
        "shop", logging.WARNING, "shop.py", 1, message, args, None, extra=extra or None
    )


def test_record_outside_any_turn_gets_no_fields() -> None:
    made = record()

    assert TurnFields().filter(made)

    assert not set(telemetry.records.TURN_FIELDS) & set(made.__dict__)


def test_record_within_a_turn_names_it_and_keeps_its_own_fields() -> None:
    made = record(shard="of pizza")

    with span("entity.turn", entity_address="Account/alice", message_id="m1", shard="default.3"), span("inner"):
        TurnFields().filter(made)

    assert made.__dict__["entity_address"] == "Account/alice"
    assert made.__dict__["message_id"] == "m1"
    assert made.__dict__["shard"] == "of pizza"


def test_json_formatter_writes_one_object_a_line_with_extra_and_exception() -> None:
    made = record("sold %d", 3, entity_address="Account/alice")
    try:
        raise ValueError("line 1\nline 2")
    except ValueError:
        made.exc_info = sys.exc_info()

    line = JsonFormatter().format(made)

    document = json.loads(line)
    assert "\n" not in line
    assert document["message"] == "sold 3"
    assert document["level"] == "WARNING"
    assert document["logger"] == "shop"
    assert document["entity_address"] == "Account/alice"
    assert "ValueError: line 1\nline 2" in document["exception"]
    assert document["time"].endswith("+00:00")


@pytest.mark.parametrize(
    "value",
    [object(), {1: {2, 3}}, "lone \ud800 surrogate", float("nan"), 10**400, b"\xff", (n := [], n.append(n))],
    ids=["object", "set", "surrogate", "nan", "huge", "bytes", "cycle"],
)
def test_json_formatter_writes_a_line_whatever_extra_holds(value: object) -> None:
    line = JsonFormatter().format(record(odd=value))

    assert json.loads(line)["message"] == "hello"


def test_extra_does_not_replace_what_every_line_has() -> None:
    made = record(level="mine", time="mine")

    document = json.loads(JsonFormatter().format(made))

    assert document["level"] == "WARNING"
    assert document["time"] != "mine"
