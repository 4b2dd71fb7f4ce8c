"""Keys as mutexes on the command line: send, ask, lines, cancel, reschedule and the retry of dead letters."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from tests.cli.support import Project, Ran

MUTEX = ("--key", "k", "--unique", "reject")


def send(project: Project, address: str, *words: str) -> Ran:
    return project("send", address, "deposit", *words)


def test_a_key_that_is_taken_is_exit_code_6(idle: Project, address: str) -> None:
    first = send(idle, address, "5", *MUTEX)

    refused = send(idle, address, "6", *MUTEX)

    assert (first.code, refused.code, refused.out) == (0, 6, "")
    assert refused.complaint == f"{address} deposit: the key is taken by message {first.out.strip()}"


def test_a_send_that_joins_prints_the_id_of_the_message_that_was_there(idle: Project, address: str) -> None:
    first, second = (send(idle, address, amount, "--key", "k", "--unique", "queue") for amount in ("5", "6"))

    assert (second.code, second.out) == (0, first.out)
    [message] = idle("messages", address, "--output", "json").json
    assert message["args"] == {"amount": 6}


def test_a_burst_is_one_message_that_waits(idle: Project, address: str) -> None:
    debounced = ("--key", "k", "--unique", "debounce", "--delay", "5m")

    ids = {send(idle, address, amount, *debounced).out for amount in ("1", "2", "3")}

    assert len(ids) == 1
    [message] = idle("messages", address, "--output", "json").json
    assert message["due_at"] is not None


def test_ask_takes_it_too_and_a_key_is_taken_for_its_time(bank: Project, address: str) -> None:
    first = bank("ask", address, "deposit", "5", *MUTEX, "--unique-for", "1h")
    refused = bank("ask", address, "deposit", "6", *MUTEX)

    assert (first.code, first.out) == (0, "5\n")
    assert refused.code == 6


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--unique", "reject"], "unique='reject' is about a key: give key=..., and no task_id"),
        (["--key", "k", "--unique-for", "1h"], "unique_for_s says how long a key is taken at least: give unique=..."),
        (["--key", "k", "--unique", "never"], "'never' is not one of 'reject', 'replace', 'queue', 'debounce'."),
        (["--key", "k", "--unique", "debounce"], "give delay_s="),
    ],
)
def test_words_that_make_no_sense_are_usage_errors(idle: Project, address: str, words: list[str], why: str) -> None:
    refused = send(idle, address, "5", *words)

    assert refused.code == 2
    assert why in refused.err


def test_lines_take_it_too_and_the_line_that_is_refused_is_named(idle: Project, address: str) -> None:
    line = {"address": address, "operation": "deposit", "key": "k", "unique": "queue", "unique_for_s": 60}
    given = [{**line, "args": [1]}, {**line, "args": [2]}, {**line, "args": [3], "unique": "reject"}]

    sent = idle("send", "-", stdin="\n".join(map(json.dumps, given)).encode())

    assert sent.code == 6
    assert sent.complaint.startswith(f"line 3: {address} deposit: the key is taken by message")
    assert sent.complaint.endswith("2 message(s) are stored; go on with --skip-lines 2")
    assert len(set(sent.out.split())) == 1
    [message] = idle("messages", address, "--output", "json").json
    assert message["args"] == {"amount": 2}


def test_the_message_that_holds_a_key_is_named_by_it(idle: Project, address: str) -> None:
    message_id = send(idle, address, "5", *MUTEX).out.strip()
    named = (address, "deposit", "--key", "k", "--unique")

    moved = idle("reschedule", *named, "--delay", "2h", "--output", "json")
    cancelled = idle("cancel", *named, "--output", "json")
    again = idle("cancel", *named)

    assert [one["id"] for one in moved.json] == [one["id"] for one in cancelled.json] == [message_id]
    assert (moved.code, cancelled.code, again.code) == (0, 0, 3)
    assert again.complaint == "no message holds this key"


def test_unique_without_a_key_names_nothing(idle: Project, address: str) -> None:
    refused = idle("cancel", address, "deposit", "--unique")

    assert refused.code == 2
    assert "--unique says what kind of key --key is: give both." in refused.err


def test_a_letter_whose_key_is_taken_is_left_and_that_is_said(bank: Project) -> None:
    note = f"Note/{uuid4().hex[:12]}"
    copy = ("copy", "missing", *MUTEX)
    letter = bank("send", note, *copy).out.strip()
    assert bank("reply", letter, "--wait", "--output", "json").json["status"] == "dead"
    bank("send", note, *copy, "--delay", "1h")

    retried = bank("dead", "retry", letter, "--yes")

    assert (retried.code, retried.out) == (0, "0 dead letters retried\n")
    assert retried.err == "1 dead letter left: another message holds the key, or somebody was faster\n"
