"""Comparing what is stored with what ought to be."""

from __future__ import annotations

import json
from typing import Any

from entitycelery import EntityCelery
from tests.model.model import Message, Model
from tests.storage.support import query

_ADVISORY = """
    SELECT objid, pid FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def check_tables(entities: EntityCelery, model: Model) -> None:
    """Every table says what the model says.

    Raises:
        AssertionError: One does not.
    """
    assert _messages(entities) == [_pending(model, m) for m in sorted(model.messages.values(), key=lambda m: m.seq)]
    assert _replies(entities) == {
        message_id: (answer.send.to, answer.send.operation, answer.status, answer.result, answer.reason)
        for message_id, answer in model.answers.items()
    }
    assert _states(entities) == {a: (e.version, e.log) for a, e in model.entities.items() if e.version}
    assert {row[0] for row in query(entities.store, "SELECT id FROM {dead_letter}")} == model.dead_letters
    assert [row[0] for row in query(entities.store, "SELECT text FROM booked ORDER BY seq")] == model.booked
    notes = query(entities.store, "SELECT token, message_ids FROM {in_flight}")
    assert {token: set(json.loads(ids)) for token, ids in notes} == model.notes


def _messages(entities: EntityCelery) -> list[tuple[Any, ...]]:
    rows = query(
        entities.store,
        "SELECT id, type, entity_id, operation, args, rev, attempt, crashes, blocking, due_at IS NULL "
        "FROM {message} ORDER BY seq",
    )
    return [(i, f"{t}/{e}", operation, _json(args), *map(int, rest)) for i, t, e, operation, args, *rest in rows]


def _pending(model: Model, message: Message) -> tuple[Any, ...]:
    send = message.send
    numbers = (message.rev, message.attempt, message.crashes, int(message.is_blocking), int(message.due_h is None))
    return (message.id, send.to, send.operation, send.arguments, *numbers)


def _replies(entities: EntityCelery) -> dict[str, tuple[Any, ...]]:
    ids = [row[0] for row in query(entities.store, "SELECT id FROM {reply}")]
    return {
        message_id: (
            str(reply.address),
            reply.operation,
            str(reply.status),
            reply.result,
            None if reply.failure is None else reply.failure.reason,
        )
        for message_id, reply in entities.store.replies(ids).items()
    }


def _states(entities: EntityCelery) -> dict[str, tuple[int, list[str] | None]]:
    rows = query(entities.store, "SELECT type, entity_id, version, state FROM {state}")
    return {f"{t}/{e}": (version, None if state is None else _json(state)["log"]) for t, e, version, state in rows}


def locks(entities: EntityCelery) -> list[tuple[Any, ...]]:
    """Every lock that somebody who lives holds: none when nobody works."""
    store = entities.store
    if store.dialect.name == "postgresql":
        return query(store, _ADVISORY)
    alive = store._locks._liveness.alive  # type: ignore[attr-defined]
    return [row for row in query(store, "SELECT kind, key, process FROM lock") if alive(row[2])]


def _json(value: Any) -> Any:
    # PostgreSQL's driver has decoded it already.
    return json.loads(value) if isinstance(value, str) else value
