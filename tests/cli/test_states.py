"""state, list and types."""

from __future__ import annotations

from uuid import uuid4

from tests.cli.support import Project


def test_state_prints_the_committed_fields(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "5")
    bank("ask", address, "give-name", "Alice")

    text = bank("state", address)

    assert text.code == 0
    assert dict(line.split(maxsplit=1) for line in text.out.splitlines()) == {
        "address": address,
        "version": "2",
        "status": "idle",
        "pending": "0",
        "balance": "5",
        "owner": "Alice",
    }


def test_state_as_json_keeps_the_fields_apart(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "5")

    expected = {"balance": 5, "owner": None}

    assert bank("state", address, "--output", "json").json["state"] == expected
    assert bank("--output", "jsonl", "state", address).jsonl[0]["state"] == expected


def test_a_state_that_is_not_there_is_exit_code_3(idle: Project, address: str) -> None:
    idle("send", address, "deposit", "5")

    missing = idle("state", address)

    assert missing.code == 3
    assert missing.complaint == f"{address} does not exist: no committed state"


def test_list_goes_through_the_addresses_page_by_page(bank: Project) -> None:
    prefix = uuid4().hex[:10]
    names = [f"Note/{prefix}-{n}" for n in range(3)]
    for name in names:
        bank("ask", name, "add", "a line")

    first = bank("list", "Note", "--after", f"Note/{prefix}", "--limit", "2", "--output", "json")
    second = bank("list", "Note", "--after", names[1], "--limit", "1")

    assert [entity["address"] for entity in first.json] == names[:2]
    assert second.out.splitlines() == ["ADDRESS", names[2]]


def test_list_says_how_to_go_on(bank: Project, address: str) -> None:
    for suffix in "ab":
        bank("ask", f"{address}{suffix}", "deposit", "1")

    listed = bank("list", "Account", "--after", address, "--limit", "1")

    assert listed.err == f"more: --after {address}a\n"


def test_list_knows_a_type_by_its_alias(bank: Project, address: str) -> None:
    bank("ask", address, "deposit", "1")

    listed = bank("list", "Konto", "--limit", "1000", "--output", "jsonl").jsonl

    assert {"address": address} in listed


def test_an_empty_list_prints_nothing(fresh: Project) -> None:
    assert fresh("db", "upgrade").code == 0

    assert fresh("list").out == ""
    assert fresh("list", "--output", "json").json == []
    assert fresh("list", "--output", "jsonl").out == ""


def test_types_lists_operations_queries_and_state(idle: Project) -> None:
    text = [line.split(maxsplit=3) for line in idle("types").out.splitlines()]

    assert text[0] == ["TYPE", "KIND", "NAME", "SIGNATURE"]
    assert ["Account", "operations", "deposit", "(amount: int) -> int"] in text
    assert ["Account", "operations", "give-name", "(owner: str) -> str"] in text
    assert ["Account", "queries", "statement", "() -> int"] in text
    assert ["Note", "state", "lines", "list[str]"] in text


def test_types_as_json_is_complete(idle: Project) -> None:
    account, note = idle("types", "--output", "json").json

    assert (account["type"], account["aliases"], note["type"]) == ("Account", ["Konto"], "Note")
    assert account["state"] == {"balance": "int", "owner": "str | None"}
    assert account["module"] == idle.name
    assert idle("types", "--output", "jsonl").jsonl == [account, note]


def test_timers_lists_what_an_entity_has_set(bank: Project, address: str) -> None:
    assert bank("timers", address).out == ""
    bank("ask", address, "promise", "3600")

    [timer] = bank("timers", address, "--output", "json").json

    assert (timer["name"], timer["operation"], timer["args"]) == ("interest", "deposit", {"amount": 1})
    assert timer["every_s"] is None
    assert bank("timers", address).out.splitlines()[0].split() == [
        "NAME",
        "OPERATION",
        "ARGS",
        "DUE",
        "AT",
        "EVERY",
        "S",
        "ID",
    ]
    assert [one["id"] for one in bank("messages", address, "--output", "json").json] == [timer["id"]]
