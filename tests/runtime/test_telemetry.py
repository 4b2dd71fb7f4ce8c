"""What a drain tells of its turns: spans for whoever listens, records for the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from entitycelery import Entity, EntityCelery, handler
from entitycelery.telemetry import Span, TurnFields, listen
from tests.client.support import drain, time_passes
from tests.runtime.support import HOOKS, PassingError, Puppet

log = logging.getLogger("user")


class Refusing(Entity):
    """Its handler may fail, and says so."""

    n: int = 0

    @handler(throws=(PassingError,))
    def refuse(self) -> None:
        raise PassingError("as agreed")


class Heard:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def began(self, span: Span) -> None:
        pass

    def ended(self, span: Span) -> None:
        self.spans.append(span)

    def happened(self, name: str, fields: Mapping[str, Any]) -> None:
        self.events.append((name, fields))

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def heard() -> Iterator[Heard]:
    listener = Heard()
    stop = listen(listener)
    yield listener
    stop()


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log of this process, with turns named in it as a worker does."""
    named = TurnFields()
    caplog.handler.addFilter(named)
    with caplog.at_level(logging.INFO):
        yield caplog
    caplog.handler.removeFilter(named)


def told(records: pytest.LogCaptureFixture, start: str) -> logging.LogRecord:
    """The one record whose text begins so."""
    [found] = [record for record in records.records if record.getMessage().startswith(start)]
    return found


def shout(_: Puppet) -> None:
    log.warning("from a handler")


async def ashout(_: Puppet) -> None:
    log.warning("from a handler")


@pytest.mark.parametrize("operation", ["act", "aact"])
@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "beside-another-kind"])
def test_every_record_of_a_turn_names_address_message_and_shard(
    entities: EntityCelery, records: pytest.LogCaptureFixture, operation: str, mixed: bool
) -> None:
    HOOKS["shout"] = shout if operation == "act" else ashout
    ref = Puppet.ref("p/1")
    sent = getattr(ref, operation).send("shout")
    if mixed:
        ref.note.send("so the entity has mail of both kinds")
        ref.anote.send("so the entity has mail of both kinds")

    drain(entities)

    fields = told(records, "from a handler").__dict__
    assert fields["entity_address"] == "Puppet/p/1"
    assert fields["message_id"] == sent.id
    assert fields["shard"].startswith("default.")
    assert (fields["operation"], fields["attempt"]) == (operation, 0)


def test_turn_is_a_span_within_its_drain_and_the_commit_another(entities: EntityCelery, heard: Heard) -> None:
    sent = Puppet.ref("a").add.send()

    drain(entities)

    [turn] = heard.named("entity.turn")
    [commit] = heard.named("entity.commit")
    assert turn.fields["message_id"] == sent.id
    assert turn.fields["outcome"] == "done"
    assert turn.parent is not None
    assert turn.parent.name == "entity.drain"
    assert turn.fields["shard"] in turn.parent.fields["shards"]
    assert commit.fields == {"entities": 1, "turns": 1, "lost": 0}
    assert [span.fields["messages"] for span in heard.named("entity.send")] == [1]


def test_failed_turn_is_logged_with_its_traceback(
    entities: EntityCelery, records: pytest.LogCaptureFixture, heard: Heard
) -> None:
    def fail(_: Puppet) -> None:
        raise KeyError("nobody waits for this one")

    HOOKS["fail"] = fail
    sent = Puppet.ref("a").act.send("fail")

    drain(entities)

    record = told(records, "turn failed")
    assert record.levelno == logging.ERROR
    assert record.__dict__["message_id"] == sent.id
    assert "in fail" in record.getMessage()
    assert [name for name, _ in heard.events if name.startswith("entity.turn")] == ["entity.turn.failed"]


def test_failure_that_the_handler_announces_is_no_error_in_the_log(
    entities: EntityCelery, records: pytest.LogCaptureFixture
) -> None:
    entities.register(Refusing)
    Refusing.ref("a").refuse.send()

    drain(entities)

    record = told(records, "turn failed as its handler may")
    assert record.levelno == logging.INFO
    assert "Traceback" not in record.getMessage()


def test_retries_and_the_dead_letter_at_their_end_are_told(
    entities: EntityCelery, records: pytest.LogCaptureFixture, heard: Heard
) -> None:
    def never(_: Puppet) -> None:
        raise PassingError("still not")

    HOOKS["never"] = never
    Puppet.ref("a").retry.send("never")

    for _ in range(3):
        drain(entities)
        time_passes(entities, 60)

    retries = [record for record in records.records if "tried again" in record.getMessage()]
    dead = told(records, "message given up")
    assert [record.__dict__["attempt"] for record in retries] == [0, 1]
    assert (dead.levelno, dead.__dict__["attempt"]) == (logging.ERROR, 2)
    assert [name for name, _ in heard.events if name.startswith("entity.turn")] == [
        "entity.turn.retried",
        "entity.turn.retried",
        "entity.turn.dead",
    ]
