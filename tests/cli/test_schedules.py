"""schedule list, show, add, pause, resume, trigger, backfill, next, remove, sync."""

from __future__ import annotations

import pytest

from tests.cli.support import Project


@pytest.fixture
def name(address: str) -> str:
    """A schedule that no other test uses."""
    return f"s-{address.partition('/')[2]}"


def test_a_schedule_is_added_listed_shown_and_removed(idle: Project, address: str, name: str) -> None:
    cron = ("--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--misfire", "skip", "--jitter", "5s")
    added = idle("schedule", "add", name, address, "deposit", "5", *cron, "--output", "json")

    assert added.code == 0
    assert added.json["status"] == "active"
    assert added.json["target"] == f"{address} deposit"
    assert (added.json["misfire"], added.json["jitter_s"], added.json["origin"]) == ("skip", 5.0, "api")
    shown = idle("schedule", "show", name, "--output", "json").json
    assert shown == added.json
    [listed] = [one for one in idle("schedule", "list", "--output", "jsonl").jsonl if one["name"] == name]
    assert listed["next_tick"].endswith("T02:30:00")
    assert name in idle("schedule", "list").out

    assert idle("schedule", "remove", name).code == 0
    gone = idle("schedule", "show", name)
    assert (gone.code, gone.complaint) == (3, f"there is no schedule {name!r}")


def test_how_a_schedule_behaves_is_said_by_options(idle: Project, address: str, name: str) -> None:
    behaviour = ("--misfire", "all", "--catch-up-per-s", "3", "--overlap", "skip", "--from-actual")
    assert idle("schedule", "add", name, address, "deposit", "5", "--every", "1h", *behaviour).code == 0

    shown = idle("schedule", "show", name, "--output", "json").json
    assert (shown["misfire"], shown["catch_up_per_s"], shown["overlap"]) == ("all", 3.0, "skip")
    assert shown["calculate_next_from"] == "actual"


def test_the_next_ticks_are_listed(idle: Project, address: str, name: str) -> None:
    idle("schedule", "add", name, address, "deposit", "5", "--cron", "0 12 * * *")

    ticks = idle("schedule", "next", name, "--count", "3", "--output", "json").json

    assert [one["tick"][10:] for one in ticks] == ["T12:00:00"] * 3
    assert [one["due_at"][10:] for one in ticks] == ["T12:00:00+00:00"] * 3


def test_a_paused_schedule_says_so_until_it_is_resumed(idle: Project, address: str, name: str) -> None:
    added = idle("schedule", "add", name, address, "deposit", "5", "--every", "1h", "--paused", "--output", "json")

    assert added.json["status"] == "paused"
    assert idle("schedule", "resume", name, "--output", "json").json["status"] == "active"
    assert idle("schedule", "pause", name, "--output", "json").json["status"] == "paused"


def test_a_trigger_and_a_backfill_store_messages(idle: Project, address: str, name: str) -> None:
    idle("schedule", "add", name, address, "deposit", "5", "--cron", "0 * * * *")
    span = ("--from", "2026-03-01T00:00:00Z", "--to", "2026-03-01T03:00:00Z")

    message_id = idle("schedule", "trigger", name).out.strip()
    first = idle("schedule", "backfill", name, *span)
    again = idle("schedule", "backfill", name, *span, "--output", "json")

    assert (first.out, again.json["fired"]) == ("3 fired\n", 0)
    pending = idle("messages", address, "--output", "jsonl").jsonl
    assert len(pending) == 4
    assert pending[0]["id"] == message_id


def test_ticks_of_an_entity_and_of_a_celery_task_are_handled_by_a_worker(
    bank: Project, address: str, name: str
) -> None:
    bank("schedule", "add", name, address, "deposit", "amount=5", "--cron", "0 0 1 1 *")
    message_id = bank("schedule", "trigger", name).out.strip()

    assert bank("reply", message_id, "--wait", "--output", "json").json["result"] == 5

    task = ("--task", "celery.accumulate", "1", "2", "--queue", "nowhere")
    added = bank("schedule", "add", f"{name}-task", *task, "--every", "1d", "--output", "json")
    assert added.json["target"] == "task celery.accumulate"
    sent = bank("schedule", "trigger", f"{name}-task").out.strip()
    assert bank("reply", sent, "--wait", "--output", "json").json["result"] == sent


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["Account/a", "deposit", "5"], 2, "takes one of cron, every_s, at and when; got 0"),
        (["Account/a", "deposit", "5", "--every", "1s", "--cron", "* * * * *"], 2, "got 2"),
        (["Account/a", "--every", "1s"], 2, "give an ADDRESS and an OPERATION, or --task"),
        (["Account/a", "deposit", "x", "--every", "1s"], 2, "amount"),
        (["Account/a", "deposit", "5", "--cron", "0 0 30 2 *"], 2, "0 0 30 2 *"),
        (["Account/a", "deposit", "5", "--cron", "0 3 * * *", "--timezone", "Mars/Base"], 2, "Mars/Base"),
        (["Account/a", "deposit", "5", "--every", "1s", "--queue", "q"], 2, "--queue goes with --task"),
        (["--task", "t", "--every", "1s", "--overlap", "skip"], 2, "when a Celery task ends is not known"),
    ],
)
def test_what_makes_no_sense_is_refused(idle: Project, name: str, words: list[str], code: int, complaint: str) -> None:
    refused = idle("schedule", "add", name, *words)

    assert refused.code == code
    assert complaint in refused.err
    assert idle("schedule", "show", name).code == 3


def test_sync_stores_what_the_code_declares(fresh: Project) -> None:
    assert fresh("db", "upgrade").code == 0
    app = fresh.folder / f"{fresh.name}.py"
    plain = app.read_text()
    app.write_text(plain + '\n\n@entities.cron("0 3 * * *")\ndef nightly():\n    pass\n')

    synced = fresh("schedule", "sync", "--output", "json")
    app.write_text(plain)
    pruned = fresh("schedule", "sync", "--prune", "--output", "json")

    assert synced.json == [{"name": "nightly", "outcome": "stored"}]
    assert pruned.json == [{"name": "nightly", "outcome": "removed"}]
    assert fresh("schedule", "list").out == ""
