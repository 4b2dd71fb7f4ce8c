"""The command line: whatever is typed or piped, one sentence and an exit code of the list, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entitycelery.cli.exits import MEANINGS
from tests.cli.conftest import make_project
from tests.cli.support import Project, Ran, environment
from tests.services import Services

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

LONG = "x" * 100_000
NASTY = [
    "",
    " ",
    "\0",
    "\ud800",
    "a\udcffb",
    "Account/",
    "/alice",
    "Account//",
    "Account/a\0b",
    "Account/\udcff",
    f"Account/{LONG}",
    LONG,
    "Nope/alice",
    "'; DROP TABLE message; --",
    "%s%n%d",
    "{0}{message}",
    "[" * 100_000,
    "[" * 3_000 + "]" * 3_000,
    "9" * 5_000,
    "1e999",
    "-1e999",
    "NaN",
    "-Infinity",
    '{"a": 1, "a": 2}',
    '"\\ud800"',
    '"\\u0000"',
    "null",
    "@",
    "@/nowhere",
    "@/",
    "@@",
    "=",
    "amount=",
    "amount=NaN",
    "--",
    "---",
    "\u202e\u2066",
    "\x1b[31m",
]
COMMANDS = [
    ["send", "{}", "deposit", "1"],
    ["send", "Account/a", "{}", "1"],
    ["send", "Account/a", "deposit", "{}"],
    ["send", "Note/a", "add", "{}"],
    ["send", "Account/a", "deposit", "1", "--key", "{}", "--delay", "1d"],
    ["send", "Account/a", "deposit", "1", "--delay", "{}"],
    ["send", "Account/a", "deposit", "1", "--at", "{}"],
    ["send", "Account/a", "deposit", "1", "--expires", "{}"],
    ["reply", "{}"],
    ["state", "{}"],
    ["list", "{}"],
    ["list", "--after", "{}"],
    ["messages", "{}"],
    ["cancel", "{}"],
    ["--cluster", "{}", "list"],
    ["--database-url", "{}", "list"],
    ["{}"],
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, services: Services) -> Iterator[Project]:
    with ExitStack() as stack:
        made = make_project("sqlite", "fuzzed", tmp_path_factory, services, stack)
        assert made("db", "upgrade").code == 0
        yield made


def assert_ended_well(ran: Ran) -> None:
    assert ran.code in MEANINGS, (ran.code, ran.err[-2_000:])
    assert "Traceback" not in ran.err + ran.out, (ran.err + ran.out)[-3_000:]
    if ran.code:
        assert ran.err.strip(), "it ended without a word"
        assert len(ran.err) < 10_000, f"{len(ran.err)} characters of error"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_nasty_word_is_handled_or_refused_in_a_sentence(words: list[str], project: Project) -> None:
    for nasty in NASTY:
        assert_ended_well(project(*(word.replace("{}", nasty) for word in words)))


@FUZZ
@given(words=st.lists(st.text(max_size=20) | st.sampled_from(["send", "Account/a", "deposit", "--key"]), max_size=6))
def test_any_words_end_in_a_result_or_a_sentence(words: list[str], project: Project) -> None:
    assert_ended_well(project(*words))


@pytest.mark.parametrize("word", [b"\xff\xfe", b"@\xed\xa0\x80"], ids=lambda word: word.hex())
def test_words_that_are_no_utf8_are_refused_in_a_sentence(word: bytes, project: Project) -> None:
    for words in ([b"send", word, b"deposit", b"1"], [b"send", b"Note/a", b"add", word], [b"reply", word], [word]):
        assert_ended_well(run(project, words))


LINES = [
    b"",
    b"\n\n\n",
    b"garbage\n",
    b"\xff\xfe\x00\n",
    b"5\n[]\nnull\n",
    b'{"address": 5}\n',
    b'{"address": "Account/a", "operation": "deposit", "args": [1], "args": [2]}\n',
    b'{"address": "Account/a", "operation": "deposit", "args": ["\\ud800"]}\n',
    b"[" * 100_000 + b"\n",
    b"x" * 3_000_000,
]


@pytest.mark.parametrize("lines", LINES, ids=lambda lines: repr(lines[:40]))
def test_lines_that_mean_nothing_are_refused_in_a_sentence(lines: bytes, project: Project) -> None:
    assert_ended_well(run(project, [b"send", b"-"], lines))


def test_a_piped_argument_that_is_no_utf8_is_refused_in_a_sentence(project: Project) -> None:
    refused = run(project, [b"send", b"Note/a", b"add", b"@-"], b"\xff\xfe\x00")

    assert refused.code == 2
    assert_ended_well(refused)


def test_a_field_given_twice_is_refused(project: Project) -> None:
    refused = project("send", "Account/a", "deposit", '{"a": 1, "a": 2}')

    assert refused.code == 2
    assert "the JSON object has the field 'a' twice." in refused.err


def run(project: Project, words: list[bytes], given: bytes = b"") -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "entitycelery.cli", "-A", project.name, *words],
        cwd=project.folder,
        env=environment(),
        input=given,
        capture_output=True,
        timeout=60,
    )
    return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
