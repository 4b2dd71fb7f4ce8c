"""What a turn may not leave behind: a failed reply that says why, the state as before, and the mailbox goes on."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from entitycelery import Entity, EntityCelery, handler
from entitycelery.exceptions import ConfigurationError, MalformedMessage
from tests.client.support import drain
from tests.fuzz.support import MISCHIEF, Box, assert_sentence, assert_served, empty, failure_of, make_boxes, pending
from tests.fuzz.test_arguments import LOOP, Wild, nested

MIB = 1024 * 1024

RESULTS: dict[str, Any] = {
    "2 MiB": "x" * (2 * MIB),
    "101 levels": nested(101),
    "100,000 levels": nested(100_000),
    "itself": LOOP,
    "an object": Wild(),
    "NaN": [math.nan],
    "NUL": "a\0b",
    "a lone surrogate": "\ud800",
    "an integer of 5,000 digits": 10**5_000,
    "raw garbage": msgspec.Raw(b"}{"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_that_cannot_be_kept_is_a_failed_reply(name: str, entities: EntityCelery) -> None:
    MISCHIEF["return"] = lambda box: RESULTS[name]

    sent, behind = Box.ref("a").act.send("return"), Box.ref("a").add.send(1)
    drain(entities)

    status, reason, sentence = failure_of(entities, sent.id)
    assert (status, reason) == ("failed", "SerializationFailed")
    assert "result of Box.act" in sentence
    assert_sentence(sentence)
    assert behind.result(timeout_s=0) == 1
    assert_served(entities, "a")


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "2 MiB"])
def test_a_state_that_cannot_be_kept_is_a_failed_reply(name: str, entities: EntityCelery) -> None:
    MISCHIEF["keep"] = lambda box: setattr(box, "content", RESULTS[name])

    sent, behind = Box.ref("a").act.send("keep"), Box.ref("a").add.send(1)
    drain(entities)

    status, reason, sentence = failure_of(entities, sent.id)
    assert (status, reason) in (("failed", "SerializationFailed"), ("failed", "StateConflict"))
    assert "Box" in sentence
    assert_sentence(sentence)
    assert behind.result(timeout_s=0) == 1
    assert_served(entities, "a")


@pytest.fixture
def small(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    """Boxes with limits that a test can reach."""
    made = make_boxes(store_url, cluster_name, max_payload_bytes=1_000, max_state_bytes=2_000, max_id_bytes=12)
    yield made
    made.close()


def test_every_limit_is_the_settings(small: EntityCelery) -> None:
    MISCHIEF["grow"] = lambda box: setattr(box, "content", [*(box.content or []), "x" * 900])
    MISCHIEF["shout"] = lambda box: "x" * 1_000
    MISCHIEF["pass on"] = lambda box: Box.ref("b").put.send("x" * 1_000).id
    MISCHIEF["call afar"] = lambda box: Box.ref("a far one").add.send(1).id + Box.ref("a" * 13).add.send(1).id

    with pytest.raises(
        MalformedMessage, match=r"put of Box/a: 1,\d+ bytes as JSON, entity_max_payload_bytes allows 1,000"
    ):
        Box.ref("a").put.send("x" * 1_000)
    with pytest.raises(ConfigurationError, match="entity_max_id_bytes allows 12"):
        Box.ref("€" * 5).add.send(1)
    names = ["grow", "grow", "grow", "shout", "pass on", "call afar"]
    sent = [Box.ref("a").act.send(name) for name in names]
    drain(small)

    assert [one.result(timeout_s=0) for one in sent[:2]] == [None, None]
    failures = [failure_of(small, one.id) for one in sent[2:]]
    assert [reason for _, reason, _ in failures] == [
        "SerializationFailed",
        "SerializationFailed",
        "MalformedMessage",
        "ConfigurationError",
    ]
    assert [next(word for word in sentence.split() if "entity_max" in word) for _, _, sentence in failures] == [
        "entity_max_state_bytes",
        "entity_max_payload_bytes",
        "entity_max_payload_bytes",
        "entity_max_id_bytes",
    ]
    assert small.state(Box.ref("a")).content == ["x" * 900] * 2
    assert_served(small, "a")


def test_a_state_of_the_largest_size_is_kept_beside_many_others(entities: EntityCelery) -> None:
    MISCHIEF["fill"] = lambda box: setattr(box, "content", "x" * (4 * MIB))

    sent = [Box.ref(f"large-{n}").act.send("fill") for n in range(8)]
    drain(entities)

    assert [one.result(timeout_s=0) for one in sent] == [None] * 8
    assert len(entities.state(Box.ref("large-7")).content) == 4 * MIB


class Raw(Entity):
    """What it is given is JSON, says its author; nobody looks."""

    kept: msgspec.Raw = msgspec.Raw(b"null")

    @handler
    def say(self, mischief: str) -> msgspec.Raw:
        said: msgspec.Raw = MISCHIEF[mischief](self)
        return said


@pytest.mark.parametrize(
    "text", [b'"\\ud800"', b"1e99999999", b'"\\udc00\\ud800"', b"[" * 99 + b"]" * 99, b'{"a":1,"a":2}'], ids=repr
)
def test_what_only_the_database_refuses_fails_that_message_alone(text: bytes, entities: EntityCelery) -> None:
    entities.register(Raw)
    MISCHIEF["raw"] = lambda _: msgspec.Raw(text)
    MISCHIEF["fine"] = lambda _: msgspec.Raw(b"1")

    bad = [Raw.ref("a").say.send("raw") for _ in range(3)]
    good = [Raw.ref("a").say.send("fine"), *(Box.ref(f"b{n}").add.send(1) for n in range(5))]
    drain(entities)

    for one in bad:
        reply = entities.reply(one.id)
        assert reply is not None
        if reply.failure is not None:
            assert (reply.status.value, reply.failure.reason) == ("failed", "SerializationFailed")
            assert_sentence(reply.failure.message)
    assert [entities.reply(one.id).status.value for one in good] == ["done"] * 6  # type: ignore[union-attr]
    assert_served(entities, "a")


def test_a_refused_message_in_a_batch_that_goes_entity_by_entity_concerns_its_sender_alone(
    entities: EntityCelery,
) -> None:
    entities.register(Raw)
    Box.ref("z").add.options(key="taken").send(1)
    drain(entities)
    # A state, since states are written before outgoing mail: so the refusal comes to light entity by entity.
    MISCHIEF["raw"] = lambda raw: setattr(raw, "kept", msgspec.Raw(b"1e99999999")) or msgspec.Raw(b"1")
    MISCHIEF["conflict"] = lambda _: Box.ref("z").add.options(key="taken").send(2).id
    MISCHIEF["pass on"] = lambda _: Box.ref("y").add.send(1).id

    before, conflict, behind, raw, after = entities.send_many(
        [
            Box.ref("a").act.prepare("pass on"),
            Box.ref("b").act.prepare("conflict"),
            Box.ref("b").add.prepare(1),
            Raw.ref("a").say.prepare("raw"),
            Box.ref("c").act.prepare("pass on"),
        ]
    )
    turns = drain(entities)

    assert failure_of(entities, conflict.id)[:2] == ("failed", "KeyConflict")
    # SQLite takes such a number.
    assert entities.reply(raw.id) is not None
    assert (behind.result(timeout_s=0), entities.state(Box.ref("b")).count) == (1, 1)
    assert all(isinstance(one.result(timeout_s=0), str) for one in (before, after))
    # Five here and the two that were passed on: no turn was committed and then taken for lost.
    assert turns == 7
    assert entities.state(Box.ref("y")).count == 2


def deepest(_: Any) -> None:
    deepest(_)


def broken_text() -> type[Exception]:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    return Unspeakable


ERRORS: dict[str, Callable[[Any], Any]] = {
    "text of 50 MB": lambda _: (_ for _ in ()).throw(ValueError("x" * 50_000_000)),
    "NUL and surrogates": lambda _: (_ for _ in ()).throw(ValueError("a\0b\ud800", {"\0": "\udfff"})),
    "arguments of 900 levels": lambda _: (_ for _ in ()).throw(ValueError(nested(900))),
    "arguments with NaN": lambda _: (_ for _ in ()).throw(ValueError(math.nan, 10**5_000)),
    "itself": lambda _: (_ for _ in ()).throw(ValueError(LOOP)),
    "no text at all": lambda _: (_ for _ in ()).throw(broken_text()()),
    "endless recursion": deepest,
    "SystemExit": lambda _: sys.exit("\0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_whatever_a_handler_raises_is_a_failed_reply_of_bounded_size(name: str, entities: EntityCelery) -> None:
    MISCHIEF["raise"] = ERRORS[name]

    sent = Box.ref("a").act.send("raise")
    drain(entities)

    reply = entities.reply(sent.id)
    assert reply is not None
    assert reply.failure is not None
    assert len(msgspec.json.encode(reply.failure)) < 200_000
    assert pending(entities) == []
    assert_served(entities, "a")


def test_the_store_is_empty_between_tests(entities: EntityCelery) -> None:
    Box.ref("a").add.send(1)

    empty(entities)

    assert pending(entities) == []
