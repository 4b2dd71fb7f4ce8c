"""workflow list, show, cancel, resume, retry, signal."""

from __future__ import annotations

from tests.cli.support import Project
from tests.waiting import eventually


def test_a_workflow_is_listed_shown_signalled_and_cancelled(waiting: Project, wish: str) -> None:
    key = wish.partition("/")[2]
    name = f"gift/{key}"
    assert waiting("send", name, "start", key, "--key", "start").code == 0
    eventually(lambda: waiting("workflow", "show", name, "--output", "json").json["waits"] == "amount")

    [listed] = [
        one for one in waiting("workflow", "list", "gift", "--output", "jsonl").jsonl if one["workflow"] == name
    ]
    assert (listed["status"], listed["steps"]) == ("suspended", 1)
    assert waiting("workflow", "signal", name, "amount", "7").out == "completed\n"
    shown = eventually(lambda: _ended(waiting("workflow", "show", name, "--output", "json").json))
    assert shown["status"] == "completed"
    assert [entry["call"] for entry in shown["history"]] == [
        "step 'greeting'",
        "wait 'amount'",
        "ask 'Wish.receive'",
    ]
    assert "step 'greeting'" in waiting("workflow", "show", name).out
    late = waiting("workflow", "cancel", name)
    assert (late.code, late.complaint) == (1, f"{name} has ended before: completed")


def _ended(shown: dict[str, object]) -> dict[str, object] | None:
    return shown if shown["ended"] else None


def test_a_cancelled_workflow_says_so(waiting: Project, wish: str) -> None:
    name = f"gift/c{wish.partition('/')[2]}"
    assert waiting("send", name, "start", "x", "--key", "start").code == 0
    eventually(lambda: waiting("workflow", "show", name, "--output", "json").json["waits"] == "amount")

    assert waiting("workflow", "cancel", name).code == 0

    eventually(lambda: waiting("workflow", "show", name, "--output", "json").json["status"] == "cancelled")
    found = waiting("workflow", "list", "gift", "--status", "cancelled", "--output", "jsonl").jsonl
    assert name in [one["workflow"] for one in found]


def test_a_workflow_is_shown_with_its_branches_and_retried(waiting: Project, wish: str) -> None:
    key = wish.partition("/")[2]
    name = f"copy/{key}"
    assert waiting("send", name, "start", key, "--key", "start").code == 0
    shown = eventually(lambda: _ended(waiting("workflow", "show", name, "--output", "json").json))
    assert shown["status"] == "failed"
    assert [(entry["position"], entry["call"].strip(), entry["state"]) for entry in shown["history"]] == [
        ("0", "step 'greeting'", "done"),
        ("1", "race", "done"),
        ("1.0.0", "sleep", "withdrawn"),
        ("1.1.0", "step 'greeting'", "done"),
        ("2", "step 'read'", "failed"),
    ]
    found = waiting("workflow", "list", "copy", "--status", "failed", "--newer-than", "1h", "--output", "jsonl").jsonl
    assert name in [one["workflow"] for one in found]
    assert waiting("workflow", "list", "copy", "--older-than", "1h", "--output", "jsonl").jsonl == []
    beyond = waiting("workflow", "retry", name, "--from-step", "7")
    assert (beyond.code, beyond.complaint) == (2, f"{name} has the positions 0 to 3, got 7")

    (waiting.folder / key).write_text("found")
    retried = waiting("workflow", "retry", name)

    assert retried.code == 0
    reply = waiting("reply", retried.out.strip(), "--wait", "--output", "json").json
    assert reply["result"] == [f"hello {key}", "found"]
    again = waiting("workflow", "retry", name)
    assert (again.code, again.complaint) == (
        2,
        f"{name} is completed: only what failed or was cancelled is retried",
    )


def test_a_workflow_that_undid_something_is_retried_from_there(waiting: Project, wish: str) -> None:
    key = wish.partition("/")[2]
    name = f"copy/{key}"
    waiting("send", name, "start", key, "true", "--key", "start")
    eventually(lambda: _ended(waiting("workflow", "show", name, "--output", "json").json))

    refused = waiting("workflow", "retry", name, "--from-step", "2")

    assert (refused.code, refused.complaint) == (
        2,
        f"{name} has undone what position 0 did: begin from 0 or before, got 2",
    )


def test_a_workflow_is_resumed(waiting: Project, wish: str) -> None:
    name = f"gift/r{wish.partition('/')[2]}"
    assert waiting("send", name, "start", "x", "--key", "start").code == 0
    eventually(lambda: waiting("workflow", "show", name, "--output", "json").json["waits"] == "amount")

    resumed = waiting("workflow", "resume", name)

    assert resumed.code == 0
    assert waiting("reply", resumed.out.strip(), "--wait").code == 0
    assert waiting("workflow", "show", name, "--output", "json").json["waits"] == "amount"


def test_what_is_not_there_is_said(waiting: Project) -> None:
    assert waiting("workflow", "show", "gift/nobody").code == 3
    assert waiting("workflow", "show", "gift").code == 2
    unknown = waiting("workflow", "list", "nonsense")
    assert (unknown.code, unknown.complaint) == (2, "there is no workflow 'nonsense'; there are: copy, gift")
