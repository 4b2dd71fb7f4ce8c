"""Rows edited by hand: the message fails or is skipped for a stated reason, and everybody else is served."""

from __future__ import annotations

from typing import Any

import pytest

from entitycelery import EntityCelery
from entitycelery.address import Address, shard_of
from entitycelery.exceptions import EntityError
from tests.client.support import SHARDS, drain
from tests.fuzz.support import (
    MISCHIEF,
    Box,
    assert_sentence,
    assert_served,
    failure_of,
    neighbour_of,
    pending,
    set_message,
    set_reply,
    set_state,
)
from tests.storage.support import change

DEEP = '{"value": ' + "[" * 5_000 + "]" * 5_000 + "}"

ARGUMENTS: dict[str, str] = {
    "null": "null",
    "a list": "[1, 2]",
    "a text": '"x"',
    "a number": "5",
    "an empty text": '""',
    "no argument": "{}",
    "another argument": '{"amount": 1}',
    "one too many": '{"value": 1, "more": 2}',
    "5,000 levels": DEEP,
}
NO_JSON: dict[str, str | bytes] = {
    "nothing": "",
    "garbage": "garbage",
    "half of it": '{"value": ',
    "NaN": '{"value": NaN}',
    "a number beyond any": '{"value": 1e999999}',
    "a lone surrogate": '{"value": "\\ud800"}',
    "a blob": b"\x00\xff\xfe",
}


def is_sqlite(entities: EntityCelery) -> bool:
    return entities.store.dialect.name == "sqlite"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_fit_no_handler_are_a_dead_letter(name: str, entities: EntityCelery) -> None:
    sent = Box.ref("a").put.send(1)
    set_message(entities, sent.id, args=ARGUMENTS[name])

    drain(entities)

    status, reason, sentence = failure_of(entities, sent.id)
    assert (status, reason) == ("dead", "MalformedMessage")
    assert_sentence(sentence)
    assert_served(entities, "a")


@pytest.mark.parametrize("name", NO_JSON)
def test_arguments_that_are_no_json_are_a_dead_letter(name: str, entities: EntityCelery) -> None:
    if not is_sqlite(entities):
        pytest.skip("jsonb holds JSON only")
    sent = Box.ref("a").put.send(1)
    set_message(entities, sent.id, args=NO_JSON[name])

    drain(entities)

    status, reason, sentence = failure_of(entities, sent.id)
    assert (status, reason) == ("dead", "MalformedMessage")
    assert_sentence(sentence)
    assert_served(entities, "a")


@pytest.mark.parametrize("column", ["args", "operation", "sender", "reply_to", "entity_id", "type", "last_failure"])
def test_a_text_that_is_no_utf8_holds_up_nobody(column: str, entities: EntityCelery) -> None:
    if not is_sqlite(entities):
        pytest.skip("PostgreSQL holds UTF-8 only")
    sent = Box.ref("a").put.send(1)
    change(entities.store, f"UPDATE {{message}} SET {column} = CAST(x'22fffe22' AS TEXT) WHERE id = '{sent.id}'")  # noqa: S608

    served = Box.ref("a").add.send(1), Box.ref(neighbour_of("a")).add.send(1)
    drain(entities)

    assert [isinstance(one.result(timeout_s=0), int) for one in served] == [True, True]


@pytest.mark.parametrize(
    "columns",
    [
        {"attempt": -1},
        {"attempt": -(2**31)},
        {"attempt": 2**31 - 1},
        {"crashes": -5},
        {"rev": -7},
        {"rev": 2**31 - 1},
        {"sender": "no address at all"},
        {"sender": ""},
        {"reply_to": "x" * 200},
        {"reply_to": ""},
        {"reply_to": "'; DROP TABLE message; --"},
        {"fingerprint": ""},
        {"nonce": None},
        {"lock_key": 0},
        {"lock_key": -(2**63)},
        {"last_failure": "5"},
        {"last_failure": '{"reason": 5}'},
        {"last_failure": "[]"},
        {"last_failure": '{"unknown_since_epoch_s": "yesterday"}'},
        {"last_failure": '{"unknown_since_epoch_s": 1e300}'},
    ],
    ids=repr,
)
def test_columns_of_odd_values_hold_up_nobody(columns: dict[str, Any], entities: EntityCelery) -> None:
    sent = Box.ref("a").add.send(1)
    behind = Box.ref("a").add.send(1)
    set_message(entities, sent.id, **columns)

    drain(entities)
    drain(entities)

    assert entities.reply(sent.id) is not None
    assert sorted([sent.result(timeout_s=0), behind.result(timeout_s=0)]) == [1, 2]
    assert_served(entities, "a")


@pytest.mark.parametrize(
    "columns",
    [
        {"attempt": "many"},
        {"attempt": b"\xff"},
        {"attempt": 1.5},
        {"crashes": "some"},
        {"rev": "x"},
        {"lock_key": "x"},
        {"lock_key": 1.5},
        {"blocking": "yes"},
        {"due_at": "soon"},
        {"expires_at": "later"},
        {"sent_at": "once"},
        {"last_failure": "garbage"},
        {"last_failure": ""},
        {"operation": b"\xff"},
        {"type": b"\xff"},
        {"entity_id": b"\xff"},
        {"shard": "x"},
        {"shard_group": "nobody's"},
    ],
    ids=repr,
)
def test_columns_of_another_type_hold_up_nobody_else(columns: dict[str, Any], entities: EntityCelery) -> None:
    if not is_sqlite(entities):
        pytest.skip("PostgreSQL's columns have types")
    sent = Box.ref("a").add.send(1)
    set_message(entities, sent.id, **columns)

    other = Box.ref(neighbour_of("a")).add.send(1)
    drain(entities)

    assert other.result(timeout_s=0) == 1
    own = Box.ref("a").add.send(1)
    drain(entities)
    assert own.result(timeout_s=0) in (1, 2)


def _fail(_: Any) -> None:
    raise LookupError("again")


@pytest.mark.parametrize("attempt", [-1, -(2**31)])
def test_a_message_with_a_negative_count_of_attempts_waits_for_its_retry(attempt: int, entities: EntityCelery) -> None:
    MISCHIEF["fail"] = _fail
    sent = Box.ref("a").retry.send("fail")
    set_message(entities, sent.id, attempt=attempt)

    behind = Box.ref("a").add.send(1)
    drain(entities)

    assert behind.result(timeout_s=0) == 1
    [waiting] = entities.messages(Box.ref("a"))
    assert (waiting.id, waiting.attempt) == (sent.id, attempt + 1)


def test_a_message_with_the_largest_count_of_attempts_ends(entities: EntityCelery) -> None:
    MISCHIEF["fail"] = _fail
    sent = Box.ref("a").retry.send("fail")
    set_message(entities, sent.id, attempt=2**31 - 1)

    drain(entities)

    assert failure_of(entities, sent.id)[0] in ("dead", "failed")
    assert_served(entities, "a")


def test_a_message_that_was_answered_already_waits_and_holds_up_nobody(entities: EntityCelery) -> None:
    sent, behind = Box.ref("a").add.send(1), Box.ref("a").add.send(1)
    change(
        entities.store,
        "INSERT INTO {reply} (id, fingerprint, type, entity_id, operation, status, result, finished_at) "
        "SELECT id, fingerprint, type, entity_id, operation, 'done', '42', sent_at FROM {message} WHERE id = :id",
        id=sent.id,
    )

    drain(entities)

    assert (sent.result(timeout_s=0), behind.result(timeout_s=0)) == (42, 1)
    [waiting] = entities.messages(Box.ref("a"))
    assert waiting.id == sent.id
    assert waiting.last_failure is not None
    assert_sentence(waiting.last_failure.message)
    assert entities.state(Box.ref("a")).count == 1


STATES: dict[str, str] = {
    "null": "null",
    "a list": "[]",
    "a number": "5",
    "a text": '"x"',
    "a field of another type": '{"count": "many"}',
    "5,000 levels": '{"content": ' + "[" * 5_000 + "]" * 5_000 + "}",
    "5,000 levels in a field nobody knows": '{"old": ' + "[" * 5_000 + "]" * 5_000 + "}",
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_another_shape_fails_its_messages_and_nobody_elses(name: str, entities: EntityCelery) -> None:
    address = Address("Box", "a")
    Box.ref("a").add.send(1)
    drain(entities)
    set_state(entities, address, state=STATES[name])

    sent, other = Box.ref("a").add.send(1), Box.ref(neighbour_of("a")).add.send(1)
    drain(entities)

    status, reason, sentence = failure_of(entities, sent.id)
    assert (status, reason) == ("failed", "StateConflict")
    assert_sentence(sentence)
    assert other.result(timeout_s=0) == 1
    with pytest.raises(EntityError) as unreadable:
        entities.state(Box.ref("a"))
    assert_sentence(unreadable.value)
    set_state(entities, address, state='{"count": 5}')
    assert_served(entities, "a")


@pytest.mark.parametrize("text", ["", "garbage", "{", '{"content": "\\ud800"}', b"\xff\x00"], ids=repr)
def test_a_state_that_is_no_json_fails_its_messages_and_nobody_elses(text: Any, entities: EntityCelery) -> None:
    if not is_sqlite(entities):
        pytest.skip("jsonb holds JSON only")
    Box.ref("a").add.send(1)
    drain(entities)
    set_state(entities, Address("Box", "a"), state=text)

    sent, other = Box.ref("a").add.send(1), Box.ref(neighbour_of("a")).add.send(1)
    drain(entities)

    assert failure_of(entities, sent.id)[:2] == ("failed", "StateConflict")
    assert other.result(timeout_s=0) == 1
    set_state(entities, Address("Box", "a"), state='{"count": 5}')
    assert_served(entities, "a")


@pytest.mark.parametrize("state_version", [0, -1, -(2**31)])
def test_a_state_of_a_version_before_all_fails_its_messages(state_version: int, entities: EntityCelery) -> None:
    Box.ref("a").add.send(1)
    drain(entities)
    set_state(entities, Address("Box", "a"), state_version=state_version)

    sent = Box.ref("a").add.send(1)
    drain(entities)

    assert failure_of(entities, sent.id)[:2] == ("failed", "StateConflict")
    set_state(entities, Address("Box", "a"), state_version=1)
    assert_served(entities, "a")


def test_a_state_of_a_later_version_holds_up_nobody_else(entities: EntityCelery) -> None:
    Box.ref("a").add.send(1)
    drain(entities)
    set_state(entities, Address("Box", "a"), state_version=99)

    Box.ref("a").add.send(1)
    other = Box.ref(neighbour_of("a")).add.send(1)
    drain(entities)

    assert other.result(timeout_s=0) == 1
    with pytest.raises(EntityError, match="written as version 99") as unreadable:
        entities.state(Box.ref("a"))
    assert_sentence(unreadable.value)


@pytest.mark.parametrize("version", [-1, 0, 2**62])
def test_a_version_set_by_hand_is_simply_the_version(version: int, entities: EntityCelery) -> None:
    Box.ref("a").add.send(1)
    drain(entities)
    set_state(entities, Address("Box", "a"), version=version)

    assert_served(entities, "a")


def test_mail_in_another_shard_than_its_entitys_is_handled_once(entities: EntityCelery) -> None:
    sent = Box.ref("a").add.send(1)
    [right] = [shard_of("default", "a", SHARDS)]
    set_message(entities, sent.id, shard=(right.number + 1) % SHARDS)
    behind = Box.ref("a").add.send(1)

    drain(entities)

    assert sorted([sent.result(timeout_s=0), behind.result(timeout_s=0)]) == [1, 2]
    assert_served(entities, "a")


@pytest.mark.parametrize("note", ["", "garbage", "5", "null", '{"a": 1}', "[1, null]", '["nobody"]', "[[[["], ids=repr)
def test_a_note_that_no_drain_wrote_holds_up_nobody(note: str, entities: EntityCelery) -> None:
    now = "unixepoch()" if is_sqlite(entities) else "clock_timestamp()"
    insert = f"INSERT INTO {{in_flight}} (token, message_ids, noted_at) VALUES (:token, :note, {now})"  # noqa: S608
    change(entities.store, insert, token="by hand", note=note)

    assert_served(entities, "a")


REPLIES: list[dict[str, Any]] = [
    {"failure": "5", "status": "failed"},
    {"failure": "{}", "status": "failed"},
    {"failure": '{"reason": 1, "type": 2, "message": 3}', "status": "dead"},
    {"failure": None, "status": "failed"},
    {"failure": None, "status": "dead"},
    {"result": '"five"'},
    {"result": '{"a": [1]}'},
    {"result": "[" * 5_000 + "]" * 5_000},
]


@pytest.mark.parametrize("columns", REPLIES, ids=lambda columns: repr(columns)[:60])
def test_a_reply_that_no_turn_wrote_is_an_error_in_a_sentence(columns: dict[str, Any], entities: EntityCelery) -> None:
    sent = Box.ref("a").add.send(1)
    drain(entities)
    set_reply(entities, sent.id, **columns)

    with pytest.raises(EntityError) as unreadable:
        sent.result(timeout_s=0)

    assert_sentence(unreadable.value)
    assert_served(entities, "a")


@pytest.mark.parametrize(
    "columns", [{"result": "garbage"}, {"result": b"\xff"}, {"failure": "{", "status": "failed"}], ids=repr
)
def test_a_reply_that_is_no_json_is_an_error_in_a_sentence(columns: dict[str, Any], entities: EntityCelery) -> None:
    if not is_sqlite(entities):
        pytest.skip("jsonb holds JSON only")
    sent = Box.ref("a").add.send(1)
    drain(entities)
    set_reply(entities, sent.id, **columns)

    with pytest.raises(EntityError) as unreadable:
        sent.result(timeout_s=0)

    assert_sentence(unreadable.value)


def test_a_reply_of_a_status_that_is_none_is_an_error_in_a_sentence(entities: EntityCelery) -> None:
    sent = Box.ref("a").add.send(1)
    drain(entities)
    if is_sqlite(entities):
        change(entities.store, "PRAGMA ignore_check_constraints = 1")
    else:
        change(entities.store, "ALTER TABLE {reply} DROP CONSTRAINT IF EXISTS reply_status_check")
    set_reply(entities, sent.id, status="perhaps")

    with pytest.raises(EntityError, match="perhaps") as unreadable:
        sent.result(timeout_s=0)

    assert_sentence(unreadable.value)
    assert_served(entities, "a")


@pytest.mark.parametrize("last_failure", ["5", "[]", '{"reason": 5}'])
def test_a_last_failure_that_no_turn_wrote_can_be_listed(last_failure: str, entities: EntityCelery) -> None:
    sent = Box.ref("a").add.options(delay_s=60).send(1)
    set_message(entities, sent.id, last_failure=last_failure)

    [listed] = entities.messages(Box.ref("a"))

    assert listed.id == sent.id
    assert listed.last_failure is not None
    assert_sentence(listed.last_failure.message)


@pytest.mark.parametrize("value", ["", "x", "-1", None])
def test_a_store_whose_number_of_shards_makes_no_sense_says_so_in_a_sentence(
    value: str | None, entities: EntityCelery
) -> None:
    change(entities.store, "DELETE FROM {meta} WHERE name = 'shards_per_group'")
    if value is not None:
        change(entities.store, "INSERT INTO {meta} (name, value) VALUES ('shards_per_group', :value)", value=value)

    with pytest.raises(EntityError, match="shards") as refused:
        entities.store.schema.verify()
    assert_sentence(refused.value)
    if entities.store.dialect.name == "postgresql":
        # Senders look at a sequence, which no hand has touched.
        return
    for call in (Box.ref("a").add, Box.ref("a").add.options(key="k")):
        with pytest.raises(EntityError, match="shards") as refused:
            call.send(1)
        assert_sentence(refused.value)
    assert pending(entities) == []


@pytest.mark.parametrize(
    "message_id",
    ["", "a\0b", "\ud800", "x" * 10_000_000, "' OR 1=1 --", "%s", "{message}", ":id"],
    ids=lambda i: i[:20],
)
def test_an_id_that_no_message_can_have_is_an_unknown_message(message_id: str, entities: EntityCelery) -> None:
    with pytest.raises(EntityError) as unknown:
        entities.reply(message_id)

    assert_sentence(unknown.value)
