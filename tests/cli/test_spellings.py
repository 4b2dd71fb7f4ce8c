"""The same commands as `entitycelery`, as a module, and as `celery -A app entity`; cheap to import."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from entitycelery.cli.group import COMMANDS
from tests.cli.support import COMMAND_TIMEOUT_S, Project, environment, run_process, script

# What only a command that needs the app may import.
HEAVY = ("sqlalchemy", "psycopg2", "msgspec", "entitycelery.app", "entitycelery.storage.sql.store", "bank")

IMPORTED = f"""
import sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "celery":
        from celery.__main__ import main
    else:
        from entitycelery.cli import main
    main()
except SystemExit as exc:
    code = exc.code
print(code or 0, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["entitycelery", "--help"],
        ["entitycelery", "--version"],
        ["entitycelery", "-A", "bank", "--help"],
        ["celery", "--help"],
        ["celery", "--version"],
        ["celery", "entity", "--help"],
    ],
)
def test_help_imports_neither_sqlalchemy_nor_the_app(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "bank.py").write_text("raise RuntimeError('imported')")

    ran = run_process([sys.executable, "-c", IMPORTED, *words], tmp_path)

    assert ran.out
    assert ran.err.split() == ["0"]


def test_help_of_every_command_is_there_without_an_app(tmp_path: Path) -> None:
    listed = run_process([script("entitycelery"), "--help"], tmp_path).out.partition("Commands:")[2]
    commands = [line.split()[0] for line in listed.partition("\n\n")[0].splitlines() if line.strip()]

    for command in commands:
        shown = run_process([script("entitycelery"), command, "--help"], tmp_path)
        assert (shown.code, shown.err) == (0, "")
        assert shown.out.startswith(f"Usage: entitycelery {command}")
    assert commands == list(COMMANDS)


def test_celery_lists_the_group(tmp_path: Path) -> None:
    listed = run_process([script("celery"), "--help"], tmp_path)

    assert "entity" in [line.split()[0] for line in listed.out.splitlines() if line.strip()]


def test_the_help_says_what_the_exit_codes_mean(tmp_path: Path) -> None:
    shown = run_process([script("entitycelery"), "--help"], tmp_path).out

    codes = [line.split()[0] for line in shown.partition("Exit codes:")[2].splitlines() if line.strip()]
    assert codes == ["0", "1", "2", "3", "4", "5", "6", "69", "130"]


@pytest.mark.parametrize("entry", [[script("entitycelery")], [sys.executable, "-m", "entitycelery.cli"]])
def test_script_and_module_are_one_program(tmp_path: Path, entry: list[str]) -> None:
    ran = run_process([*entry, "--version"], tmp_path)

    assert (ran.code, ran.out) == (0, f"entitycelery, version {version('entitycelery')}\n")


def test_all_spellings_do_the_same_with_standard_input_closed(bank: Project, address: str) -> None:
    spellings = [
        [script("entitycelery"), "-A", bank.name],
        [sys.executable, "-m", "entitycelery.cli", "-A", bank.name],
        [script("celery"), "-A", bank.name, "entity"],
    ]
    for balance, spelling in enumerate(spellings, start=1):
        asked = bank.process(*spelling, "ask", address, "deposit", "1", stdin=None)

        assert (asked.code, asked.out, asked.err) == (0, f"{balance}\n", "")


@pytest.mark.parametrize("bank", ["sqlite"], indirect=True)
def test_celerys_spelling_has_the_same_exit_codes_and_formats(bank: Project, address: str) -> None:
    def entity(*words: str) -> tuple[int, str]:
        ran = bank.process(script("celery"), "-A", bank.name, "entity", *words)
        return ran.code, ran.out

    assert entity("state", address)[0] == 3
    assert entity("ask", address, "fail", "broke")[0] == 1
    assert entity("--output", "json", "messages", address) == (0, "[]\n")
    assert entity("--database-url", "postgresql://postgres@127.0.0.1:1/x", "list")[0] == 69


@pytest.mark.parametrize("bank", ["sqlite"], indirect=True)
def test_an_app_in_the_environment_is_the_app(bank: Project, address: str) -> None:
    asked = run_process([script("celery"), "entity", "ask", address, "deposit", "3"], bank.folder, CELERY_APP=bank.name)

    assert (asked.code, asked.out) == (0, "3\n")


def test_a_reader_that_goes_away_is_no_error(idle: Project, address: str) -> None:
    for _ in range(3):
        idle("send", address, "deposit", "1")
    reading, writing = os.pipe()
    os.close(reading)

    ended = subprocess.run(
        [script("entitycelery"), "-A", idle.name, "messages", "--output", "jsonl"],
        cwd=idle.folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    os.close(writing)

    assert "Traceback" not in ended.stderr
