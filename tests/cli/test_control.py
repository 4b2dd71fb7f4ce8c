"""cancel, reschedule and entity delete."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.cli.support import Project
from tests.cli.terminal import on_terminal


def sent(project: Project, address: str, *words: str) -> str:
    """The id of a message sent."""
    return project("send", address, *words).out.strip()


def test_a_cancelled_message_is_answered_with_cancelled(idle: Project, address: str) -> None:
    message_id = sent(idle, address, "deposit", "5")

    cancelled = idle("cancel", message_id)

    assert cancelled.code == 0
    assert [line.split() for line in cancelled.out.splitlines()] == [
        ["ID", "OUTCOME", "STATUS"],
        [message_id, "cancelled", "cancelled"],
    ]
    reply = idle("reply", message_id, "--output", "json")
    assert (reply.code, reply.json["status"]) == (1, "cancelled")
    assert idle("messages", address).out == ""


def test_a_key_names_the_message_to_cancel(idle: Project, address: str) -> None:
    message_id = sent(idle, address, "deposit", "5", "--key", "order-17")

    [cancelled] = idle("cancel", address, "deposit", "--key", "order-17", "--output", "json").json

    assert cancelled == {"id": message_id, "outcome": "cancelled", "status": "cancelled"}


def test_several_messages_are_cancelled_at_once_and_again_without_harm(idle: Project, address: str) -> None:
    ids = [sent(idle, address, "deposit", str(n)) for n in range(2)]

    first, again = (idle("cancel", *ids, "--output", "jsonl") for _ in range(2))

    assert (first.code, again.code) == (0, 0)
    assert [(one["id"], one["outcome"]) for one in first.jsonl] == [(each, "cancelled") for each in ids]
    assert [(one["outcome"], one["status"]) for one in again.jsonl] == [("finished", "cancelled")] * 2


def test_a_finished_message_cannot_be_cancelled_or_rescheduled(bank: Project, address: str) -> None:
    message_id = bank("send", address, "deposit", "5", "--wait", "--output", "json").json["id"]

    for command in (["cancel"], ["reschedule", "--delay", "1h"]):
        late = bank(*command, message_id)
        assert late.code == 1
        assert late.out.splitlines()[1].split() == [message_id, "finished", "done"]
        assert late.complaint == f"message {message_id} had ended before: done"
    assert bank("state", address, "--output", "json").json["state"]["balance"] == 5


def test_a_message_that_is_not_there_is_exit_code_3(idle: Project, address: str) -> None:
    message_id = sent(idle, address, "deposit", "5")

    missing = idle("cancel", "nobody", message_id, "--output", "json")

    assert missing.code == 3
    assert missing.complaint == "message nobody was never stored, or its reply is purged"
    assert [one["outcome"] for one in missing.json] == ["unknown", "cancelled"]


def test_a_rescheduled_message_has_its_new_due_time(idle: Project, address: str) -> None:
    message_id = sent(idle, address, "deposit", "5", "--key", "k")

    at = idle("reschedule", message_id, "--at", "2100-01-01T00:00:00+00:00", "--output", "json")
    [listed] = idle("messages", address, "--output", "json").json
    assert at.json == [{"id": message_id, "outcome": "rescheduled", "status": None}]
    assert listed["due_at"] == "2100-01-01T00:00:00.000+00:00"

    assert idle("reschedule", address, "deposit", "--key", "k", "--delay", "2h").code == 0
    [listed] = idle("messages", address, "--output", "json").json
    left_s = (datetime.fromisoformat(listed["due_at"]) - datetime.now(UTC)).total_seconds()
    assert 7200 - 600 < left_s <= 7201


def test_a_delayed_message_rescheduled_to_now_is_handled(bank: Project, address: str) -> None:
    message_id = sent(bank, address, "deposit", "5", "--delay", "1d")

    assert bank("reschedule", message_id, "--delay", "0").code == 0

    reply = bank("reply", message_id, "--wait", "--output", "json")
    assert (reply.code, reply.json["result"]) == (0, 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cancel"], "Missing argument"),
        (["cancel", "Account/a", "--key", "k"], "--key belongs to ADDRESS OPERATION"),
        (["reschedule", "some-id"], "Give --delay or --at."),
        (["reschedule", "some-id", "--delay", "1", "--at", "2100-01-01T00:00:00Z"], "Give --delay or --at."),
        (["entity", "delete", "Account/a", "--timeout", "5"], "--timeout is the longest wait"),
    ],
)
def test_half_a_command_is_a_usage_error(idle: Project, words: list[str], sentence: str) -> None:
    refused = idle(*words)

    assert refused.code == 2
    assert sentence in refused.err


def test_a_key_of_an_unknown_operation_is_refused(idle: Project) -> None:
    refused = idle("cancel", "Account/a", "nope", "--key", "k")

    assert (refused.code, refused.out) == (2, "")
    assert refused.complaint.startswith("Account has no operation 'nope'")


def test_a_deleted_entity_has_no_state_any_more(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "5")

    deleted = bank("entity", "delete", address, "--wait")

    assert (deleted.code, deleted.out) == (0, f"{address} deleted\n")
    assert bank("state", address).code == 3
    assert bank("ask", address, "deposit", "1").out == "1\n"


def test_a_deletion_that_is_not_awaited_prints_its_id(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "5")

    deleted = bank("entity", "delete", address, "--output", "json").json

    assert (deleted["address"], deleted["status"]) == (address, "pending")
    assert bank("reply", deleted["id"], "--wait", "--output", "json").json["status"] == "done"


def test_an_entity_that_is_not_there_cannot_be_deleted(idle: Project, address: str) -> None:
    missing = idle("entity", "delete", address)

    assert missing.code == 3
    assert missing.complaint == f"{address} does not exist: no committed state, no pending message"
    assert idle("messages", address).out == ""


def test_an_entity_is_deleted_on_a_terminal_only_after_a_yes(idle: Project, address: str) -> None:
    sent(idle, address, "deposit", "5")
    delete = ("entity", "delete", address, "--output", "json")

    refused = on_terminal(idle, *delete, answer="n")
    assert refused.code == 1
    assert f"Delete {address}? [y/N]" in refused.err
    assert len(idle("messages", address, "--output", "json").json) == 1

    assert on_terminal(idle, *delete, answer="y").code == 0
    assert [one["operation"] for one in idle("messages", address, "--output", "json").json] == [
        "deposit",
        "entity.delete",
    ]
