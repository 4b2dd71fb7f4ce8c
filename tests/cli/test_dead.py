"""dead list, show, retry and discard; and types --check, which counts what the code does not know."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.cli.support import Project
from tests.cli.terminal import on_terminal


@pytest.fixture
def note() -> str:
    """A note that no other test uses."""
    return f"Note/{uuid4().hex[:12]}"


def dead(bank: Project, note: str, *names: str) -> list[str]:
    """Have messages die that copy files which are not there; their ids."""
    ids = [bank("send", note, "copy", name).out.strip() for name in names]
    for message_id in ids:
        assert bank("reply", message_id, "--wait", "--output", "json").json["status"] == "dead"
    return ids


def listed(bank: Project, note: str, *words: str) -> list[str]:
    return [one["id"] for one in bank("dead", "list", "--address", note, *words, "--output", "json").json]


def test_dead_letters_are_listed_with_their_reason(bank: Project, note: str) -> None:
    [message_id] = dead(bank, note, "missing")

    text = bank("dead", "list", "--address", note)
    [record] = bank("dead", "list", "--address", note, "--output", "jsonl").jsonl

    assert text.out.splitlines()[0].split()[:4] == ["ID", "ADDRESS", "OPERATION", "ARGS"]
    assert text.out.splitlines()[1].split()[:3] == [message_id, note, "copy"]
    assert {name: record[name] for name in ("id", "address", "operation", "args", "attempts", "reason")} == {
        "id": message_id,
        "address": note,
        "operation": "copy",
        "args": {"name": "missing"},
        "attempts": 1,
        "reason": "HandlerFailed",
    }
    assert record["failure"].startswith("FileNotFoundError: ")


def test_dead_letters_go_page_by_page(bank: Project, note: str) -> None:
    ids = dead(bank, note, "one", "two", "three")

    first = bank("dead", "list", "--address", note, "--limit", "2", "--output", "json")
    after = first.json[-1]["seq"]

    assert [one["id"] for one in first.json] == ids[:2]
    assert first.err == f"more: --after {after}\n"
    assert listed(bank, note, "--after", str(after)) == ids[2:]


def test_filters_choose_dead_letters(bank: Project, note: str) -> None:
    ids = dead(bank, note, "one")

    assert listed(bank, note, "--operation", "copy", "--reason", "HandlerFailed", "--newer-than", "1h") == ids
    for words in (["--operation", "add"], ["--reason", "Quarantined"], ["--older-than", "1h"]):
        assert listed(bank, note, *words) == []
    assert ids[0] in bank("dead", "list", "--type", "Note", "--limit", "1000", "--output", "json").out
    assert bank("dead", "list", "--type", "Account", "--output", "json").json == []


def test_show_prints_one_letter_and_with_verbose_its_traceback(bank: Project, note: str) -> None:
    [message_id] = dead(bank, note, "missing")

    plain, verbose = bank("dead", "show", message_id), bank("dead", "show", message_id, "--verbose")

    assert plain.code == 0
    assert f"id         {message_id}" in plain.out
    assert "Traceback" not in plain.out
    assert "Traceback" in verbose.out
    missing = bank("dead", "show", "nobody")
    assert (missing.code, missing.complaint) == (3, "there is no dead letter nobody")


def test_a_retried_letter_is_handled_once_its_trouble_is_over(bank: Project, note: str) -> None:
    name = note.replace("/", "-")
    [message_id] = dead(bank, note, name)
    (bank.folder / name).write_text("found")

    retried = bank("dead", "retry", message_id)

    assert (retried.code, retried.out) == (0, "1 dead letter retried\n")
    assert bank("reply", message_id, "--wait", "--output", "json").json["result"] == 1
    assert bank("state", note, "--output", "json").json["state"]["lines"] == ["found"]
    assert listed(bank, note) == []


def test_a_dry_run_lists_and_changes_nothing(bank: Project, note: str) -> None:
    ids = dead(bank, note, "one", "two")

    for verb in ("retry", "discard"):
        dry = bank("dead", verb, "--address", note, "--dry-run", "--output", "json")
        assert (dry.code, [one["id"] for one in dry.json]) == (0, ids)

    assert listed(bank, note) == ids


def test_discarded_letters_are_gone_and_their_failure_stays(bank: Project, note: str) -> None:
    [first, second] = dead(bank, note, "one", "two")

    assert bank("dead", "discard", first, "--output", "json").json == {"discarded": [first]}
    assert bank("dead", "discard", "--address", note).out == "1 dead letter discarded\n"

    assert listed(bank, note) == []
    assert bank("reply", second, "--output", "json").json["status"] == "dead"
    assert bank("dead", "discard", "--address", note).out == "0 dead letters discarded\n"


def test_an_id_that_is_no_dead_letter_is_exit_code_3_and_the_others_are_taken(bank: Project, note: str) -> None:
    [message_id] = dead(bank, note, "one")

    for dry in (["--dry-run"], []):
        ran = bank("dead", "discard", message_id, "nobody", *dry)
        assert (ran.code, ran.complaint) == (3, "no such dead letter: nobody")
    assert listed(bank, note) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["retry"], "Give ids, filters or --all."),
        (["discard"], "Give ids, filters or --all."),
        (["discard", "some-id", "--all"], "--all goes with neither ids nor filters."),
        (["discard", "--type", "Note", "--all"], "--all goes with neither ids nor filters."),
        (["list", "--type", "Note", "--address", "Note/1"], "--address says the type: leave --type out."),
        (["list", "--older-than", "soon"], "'soon' is no duration"),
        (["frob"], "No such command 'frob'"),
    ],
)
def test_what_is_meant_must_be_said(idle: Project, words: list[str], sentence: str) -> None:
    refused = idle("dead", *words)

    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.err


def test_all_takes_everything(fresh: Project) -> None:
    assert fresh("db", "upgrade").code == 0

    assert fresh("dead", "retry", "--all").out == "0 dead letters retried\n"
    assert fresh("dead", "discard", "--all", "--output", "json").json == {"discarded": []}


def test_on_a_terminal_letters_are_discarded_only_after_a_yes(bank: Project, note: str) -> None:
    ids = dead(bank, note, "one", "two")
    discard = ("dead", "discard", "--address", note)

    refused = on_terminal(bank, *discard, answer="n")
    assert refused.code == 1
    assert "Discard 2 dead letters? [y/N]" in refused.err
    assert listed(bank, note) == ids

    assert on_terminal(bank, *discard, "--yes").code == 0
    assert listed(bank, note) == []


def test_types_check_counts_what_the_code_does_not_know(fresh: Project) -> None:
    assert fresh("db", "upgrade").code == 0
    fresh("send", "Account/a", "deposit", "5")
    fresh("send", "Account/b", "deposit", "5")
    fresh("send", "Note/n", "add", "a line")
    assert fresh("types", "--check").code == 0
    assert fresh("types", "--check", "--output", "json").json == []

    module = fresh.folder / f"{fresh.name}.py"
    renamed = module.read_text().replace("def deposit(", "def put_in(").replace("class Note(", "class Page(")
    module.write_text(renamed)

    checked = fresh("types", "--check")
    assert checked.code == 1
    assert [line.split(maxsplit=5) for line in checked.out.splitlines()[1:]] == [
        ["message", "Account", "deposit", "-", "2", "Account has no such operation"],
        ["message", "Note", "add", "-", "1", "no such type"],
    ]
    assert checked.complaint == "2 stored kinds are not known to the code of this app"
