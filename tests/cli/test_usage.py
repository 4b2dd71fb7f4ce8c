"""Bad input: one clear sentence on standard error, exit code 2, no traceback and nothing stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Project, run_process, script

ALICE = "Account/alice"

REFUSED = [
    (["send", "Account", "deposit", "5"], "an address is written Type/id, got 'Account'"),
    (["send", "Account/", "deposit", "5"], "an entity id has 1 to 2400 bytes of UTF-8 and no NUL, got 0 bytes"),
    (["send", "Nope/alice", "deposit", "5"], "no entity type 'Nope' is registered with this app"),
    (["send", ALICE, "nope", "5"], "Account has no operation 'nope'; it has: deposit, fail, forget, give-name"),
    (["send", ALICE, "statement"], "Account has no operation 'statement'"),
    (["send", ALICE, "deposit"], "amount"),
    (["send", ALICE, "deposit", "1", "2"], "Account.deposit takes 1 positional argument"),
    (["send", ALICE, "deposit", "five"], "amount"),
    (["send", ALICE, "deposit", "[1]"], "amount"),
    (["send", ALICE, "deposit", "1", "--delay", "1", "--at", "2100-01-01T00:00:00Z"], "delay_s and deliver_at exclude"),
    (["state", "Account"], "an address is written Type/id"),
    (["state", "Nope/alice"], "no entity type 'Nope'"),
    (["list", "Nope"], "no entity type 'Nope' is registered with this app; it knows: Account, Note"),
    (["list", "--after", "alice"], "an address is written Type/id"),
    (["messages", "alice"], "an address is written Type/id"),
    (["--database-url", "nonsense", "list"], "entity_database_url is no database URL"),
    (["--database-url", "mysql://localhost/x", "list"], "supported are postgresql:// (psycopg2) and sqlite:///"),
    (["--cluster", "not a name", "list"], "cluster"),
]

UNREADABLE = [
    (["send", ALICE, "deposit", "5", "--delay", "soon"], "'soon' is no duration: write 90, 90s, 5m, 2h or 1d."),
    (["send", ALICE, "deposit", "5", "--at", "soon"], "'soon' is no instant in ISO 8601"),
    (["send", ALICE, "deposit", "5", "--at", "2100-01-01T00:00:00"], "has no time zone"),
    (["send", ALICE, "deposit", "5", "--timeout", "5"], "--timeout is the longest wait: give --wait too."),
    (["reply", "some-id", "--timeout", "5"], "--timeout is the longest wait: give --wait too."),
    (["send", ALICE, "deposit", "amount=1", "amount=2"], "amount= is given twice."),
    (["send", ALICE, "deposit", "5", "--frob"], "No such option '--frob'"),
    (["send", ALICE], "Missing argument 'OPERATION'"),
    (["frob"], "No such command 'frob'"),
    (["list", "--limit", "0"], "0 is not in the range x>=1"),
    (["list", "--output", "xml"], "'xml' is not one of 'text', 'json', 'jsonl'"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_a_bad_word_is_refused_in_one_sentence(idle: Project, words: list[str], sentence: str) -> None:
    before = idle("messages", "--output", "json").out

    refused = idle(*words)

    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.complaint
    assert idle("messages", "--output", "json").out == before


@pytest.mark.parametrize(("words", "sentence"), UNREADABLE)
def test_a_bad_option_is_refused_with_the_usage(idle: Project, words: list[str], sentence: str) -> None:
    refused = idle(*words)

    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("nosuch", None, "the app 'nosuch' cannot be loaded: ModuleNotFoundError: No module named 'nosuch'"),
        ("broken", "1 / 0", "the app 'broken' cannot be loaded: ZeroDivisionError: division by zero"),
        ("plain", "from celery import Celery\napp = Celery('plain')", "has no entities: create EntityCelery(app)"),
        ("plain:nosuch", "", "the app 'plain:nosuch' cannot be loaded: AttributeError"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_refused(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(text)

    refused = run_process([script("entitycelery"), "-A", name, "types"], tmp_path)

    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.complaint


def test_verbose_shows_where_an_app_is_broken(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")

    refused = run_process([script("entitycelery"), "-A", "broken", "types", "--verbose"], tmp_path)

    assert refused.code == 2
    assert "Traceback" in refused.err
    assert 'broken.py", line 1' in refused.err


@pytest.mark.parametrize(
    ("command", "example"),
    [
        (["entitycelery", "send", ALICE, "deposit", "5"], "entitycelery -A bank ..."),
        (["entitycelery", "types"], "entitycelery -A bank ..."),
        (["entitycelery", "check"], "entitycelery -A bank ..."),
        (["celery", "entity", "send", ALICE, "deposit", "5"], "celery -A bank entity ..."),
        (["celery", "entity", "state", ALICE], "celery -A bank entity ..."),
    ],
)
def test_without_an_app_it_says_so(tmp_path: Path, command: list[str], example: str) -> None:
    refused = run_process([script(command[0]), *command[1:]], tmp_path)

    assert (refused.code, refused.out) == (2, "")
    assert refused.complaint == f"which Celery app? Name its module: {example}"
