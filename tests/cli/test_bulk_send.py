"""send - and send --file: JSON lines in bulk."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import COMMAND_TIMEOUT_S, Project, environment, script
from tests.waiting import eventually

DEAD_POSTGRES = "postgresql://postgres@127.0.0.1:1/nothing"


def lines(*values: Any) -> bytes:
    """JSON lines; what is bytes already stays as it is."""
    return b"".join(value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n" for value in values)


def deposit(address: str, amount: int = 1, **more: Any) -> dict[str, Any]:
    return {"address": address, "operation": "deposit", "args": [amount], **more}


def pending(project: Project, address: str) -> list[Any]:
    """The arguments of the pending messages of an entity, oldest first."""
    found = project("messages", address, "--limit", "10000", "--output", "json").json
    return [message["args"] for message in found]


def test_lines_become_messages_in_their_order(idle: Project, address: str) -> None:
    type_name, _, entity_id = address.partition("/")
    given = lines(
        deposit(address, 1),
        {"type": type_name, "id": entity_id, "operation": "deposit", "args": {"amount": 2}, "key": "k"},
        b"\n",
        deposit(address, 3, expires_s=3600, deliver_at="2100-01-31T09:00:00+01:00"),
        {"address": address, "operation": "forget", "key": None},
    )

    sent = idle("send", "-", stdin=b"\xef\xbb\xbf" + given)

    assert (sent.code, sent.err) == (0, "")
    messages = idle("messages", address, "--output", "json").json
    assert [message["id"] for message in messages] == sent.out.split()
    assert [message["args"] for message in messages] == [{"amount": 1}, {"amount": 2}, {"amount": 3}, {}]
    assert messages[2]["due_at"].startswith("2100-01-31T08:00:00")


def test_lines_are_handled_by_a_worker(bank: Project, address: str) -> None:
    sent = bank("send", "-", "--batch", "7", stdin=lines(*[deposit(address) for _ in range(100)]))

    assert sent.code == 0
    assert bank("ask", address, "deposit", "0").out == "100\n"
    assert bank("reply", sent.out.split()[41], "--output", "json").json["result"] == 42


def test_ids_are_printed_in_every_format(idle: Project, address: str) -> None:
    given = lines(deposit(address, key="a"), b"\n", deposit(address, key="b"))
    text = idle("send", "-", stdin=given)
    document = idle("--output", "json", "send", "-", stdin=given)
    documents = idle("send", "-", "--output", "jsonl", stdin=given)

    ids = text.out.split()
    assert [record["id"] for record in document.json] == ids
    assert documents.jsonl == document.json
    assert [record["line"] for record in document.json] == [1, 3]
    assert idle("--output", "json", "send", "-", stdin=b"").json == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{\n", 'no JSON: Expecting property name.*: "{"; expected {"address": "Type/id"'),
        (b"[1]\n", r'no JSON object: "\[1\]"; expected'),
        (b'{"a\xff": 1}\n', "it is not UTF-8 at byte 3"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        ({"address": "Account/a"}, "operation is missing; expected"),
        ({"operation": "deposit"}, "address is missing; expected"),
        ({"id": "a", "operation": "deposit"}, "expected either address, or type and id"),
        ({"address": 5, "operation": "deposit"}, "address is 5, no text; expected"),
        ({"adress": "Account/a", "operation": "deposit"}, 'unknown field "adress"; expected address, type, id,'),
        (deposit("Account/a", delay="5m"), 'unknown field "delay"; expected .* delay_s'),
        (deposit("Account/a", delay_s="5m"), "delay_s is a number of seconds or a timedelta, got '5m'"),
        (deposit("Account/a", deliver_at="2100-01-31T09:00:00"), "deliver_at: .* has no time zone"),
        (deposit("Account/a", key=5), "a key is a str, got 5"),
        (deposit("Nobody/a"), "no entity type 'Nobody'"),
        (deposit("Account"), "is written Type/id"),
        ({"address": "Account/a", "operation": "vanish"}, "Account has no operation 'vanish'; it has: deposit"),
        ({"address": "Account/a", "operation": "deposit", "args": "5"}, "expected a list or an object"),
        ({"address": "Account/a", "operation": "deposit", "args": ["5"]}, "argument 'amount'.*Expected `int`"),
        ({"address": "Account/a", "operation": "deposit", "args": {"self": 5}}, "an argument called self"),
        ({"address": "Account/a", "operation": "deposit"}, "argument 'amount'|missing.*amount"),
        (b'{"address": "Account/a", "operation": "deposit", "args": [NaN]}\n', "NaN is no JSON"),
    ],
)
@pytest.mark.parametrize("idle", ["sqlite"], indirect=True)
def test_a_bad_line_ends_it_and_everything_before_it_is_stored(
    idle: Project, address: str, bad: Any, said: str
) -> None:
    given = lines(deposit(address, 1), deposit(address, 2), bad, deposit(address, 4))

    refused = idle("send", "-", stdin=given)

    assert refused.code == 2
    assert refused.complaint.startswith("line 3: ")
    assert refused.complaint.endswith("; 2 message(s) are stored; go on with --skip-lines 2")
    assert re.search(said, refused.complaint), refused.complaint
    assert len(refused.out.split()) == 2
    assert pending(idle, address) == [{"amount": 1}, {"amount": 2}]


def test_a_refused_line_within_a_batch_ends_it_at_that_line(idle: Project, address: str) -> None:
    given = lines(deposit(address, 1), deposit(address, 2, key="k"), deposit(address, 3, key="k"), deposit(address, 4))

    refused = idle("send", "-", stdin=given)

    assert refused.code == 5
    assert refused.complaint.startswith(f"line 3: {address} deposit: the key was used before")
    assert refused.complaint.endswith("2 message(s) are stored; go on with --skip-lines 2")
    assert pending(idle, address) == [{"amount": 1}, {"amount": 2}]


def test_a_mended_file_goes_on_where_it_ended(idle: Project, address: str, tmp_path: Path) -> None:
    file = tmp_path / "deposits.jsonl"
    file.write_bytes(lines(deposit(address, 1), deposit(address, 2), {"operation": "deposit"}, deposit(address, 4)))
    stopped = idle("send", "--file", str(file))
    file.write_bytes(lines(deposit(address, 1), deposit(address, 2), deposit(address, 3), deposit(address, 4)))

    went_on = idle("send", "--file", str(file), "--skip-lines", stopped.complaint.split()[-1])

    assert went_on.code == 0
    assert [args["amount"] for args in pending(idle, address)] == [1, 2, 3, 4]


def test_with_keys_the_whole_file_can_be_sent_again(idle: Project, address: str) -> None:
    given = lines(*[deposit(address, amount, key=f"line-{amount}") for amount in range(5)])

    first, again = idle("send", "-", stdin=given), idle("send", "-", "--batch", "2", stdin=given)

    assert (again.code, again.out) == (0, first.out)
    assert len(pending(idle, address)) == 5


def test_check_looks_at_every_line_and_stores_nothing(idle: Project, address: str) -> None:
    good = idle("send", "-", "--check", stdin=lines(deposit(address), deposit(address)))
    bad = idle("send", "-", "--check", stdin=lines(deposit(address), b"{\n"))

    assert (good.code, good.out, good.err) == (0, "", "2 line(s) are good, nothing is stored\n")
    assert bad.code == 2
    assert bad.complaint.endswith("; 1 line(s) before it are good, nothing is stored")
    assert pending(idle, address) == []


@pytest.mark.parametrize("idle", ["sqlite"], indirect=True)
def test_a_store_that_goes_away_says_what_may_be_stored(idle: Project, address: str) -> None:
    refused = idle("--database-url", DEAD_POSTGRES, "send", "-", stdin=lines(deposit(address), deposit(address)))

    assert refused.code == 69
    assert refused.complaint.startswith("lines 1 to 2: ")
    assert "only lines with keys are safe; go on with --skip-lines 0" in refused.complaint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-", "deposit"], "lines name their own calls: deposit cannot go with them"),
        (["-", "--key", "k"], "lines name their own calls: --key cannot go with them"),
        (["-", "--wait"], "lines name their own calls: --wait cannot go with them"),
        (["Account/a", "deposit", "1", "--skip-lines", "1"], "--skip-lines, --batch and --check go with - or --file"),
        ([], "Missing argument 'ADDRESS'"),
        (["Account/a"], "Missing argument 'OPERATION'"),
        (["--file", "nosuch.jsonl"], "there is no file nosuch.jsonl"),
    ],
)
@pytest.mark.parametrize("idle", ["sqlite"], indirect=True)
def test_words_that_do_not_go_together_are_refused(idle: Project, words: list[str], said: str) -> None:
    refused = idle("send", *words)

    assert refused.code == 2
    assert said in refused.err


@pytest.mark.parametrize("idle", ["sqlite"], indirect=True)
def test_ctrl_c_says_what_is_stored(idle: Project, address: str) -> None:
    out = idle.folder / "ids"
    with out.open("wb") as ids:
        process = subprocess.Popen(
            [script("entitycelery"), "-A", idle.name, "send", "-", "--batch", "50"],
            cwd=idle.folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=ids,
            stderr=subprocess.PIPE,
        )
    assert process.stdin is not None
    process.stdin.write(lines(*[deposit(address) for _ in range(100)]))
    process.stdin.flush()
    eventually(lambda: len(out.read_text().split()) == 100)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=COMMAND_TIMEOUT_S)

    assert process.returncode == 130
    assert b"interrupted; 100 message(s) are stored" in err
    assert b"go on with --skip-lines 100" in err
    assert len(pending(idle, address)) == 100


@pytest.mark.parametrize("idle", ["sqlite"], indirect=True)
def test_a_terminal_shows_how_far_it_is_and_a_pipe_does_not(idle: Project, address: str, tmp_path: Path) -> None:
    file = tmp_path / "deposits.jsonl"
    file.write_bytes(lines(*[deposit(address) for _ in range(30)]))
    command = [script("entitycelery"), "-A", idle.name, "send", "--file", str(file), "--batch", "10"]

    shown, ids = on_terminal(idle, command)
    plain = idle.process(*command)

    assert "100%" in shown
    assert "30/30" in shown
    assert "30 message(s) are stored" in shown
    assert len(ids.split()) == 30
    assert (plain.code, plain.err) == (0, "")


def on_terminal(project: Project, command: list[str]) -> tuple[str, str]:
    """What a command writes to a terminal as its standard error, and to a pipe as its standard output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=project.folder,
        env=environment(TERM="xterm"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    out, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
    shown = b""
    # OSError: so Linux says that nobody has the other end open any more.
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 65_536):
            shown += chunk
    os.close(master)
    assert process.returncode == 0
    return shown.decode(), out
