"""Completion in shells: commands by click, types and operations by the app."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.cli.support import Project, run_process, script

PROGRAM = "_ENTITYCELERY_COMPLETE"

pytestmark = pytest.mark.parametrize("idle", ["sqlite"], indirect=True)


def completed(project: Project, shell: str, *words: str) -> list[str]:
    """What is offered for the last of the words, by the protocol of that shell's script."""
    command = ["entitycelery", "-A", project.name, *words]
    variables = {
        "bash": {"COMP_WORDS": shlex.join(command), "COMP_CWORD": str(len(command) - 1)},
        "zsh": {"COMP_WORDS": shlex.join(command), "COMP_CWORD": str(len(command) - 1)},
        "fish": {"COMP_WORDS": shlex.join(command), "COMP_CWORD": words[-1]},
    }[shell]
    ran = run_process([script("entitycelery")], project.folder, **{PROGRAM: f"{shell}_complete"}, **variables)
    assert (ran.code, ran.err) == (0, "")
    if shell == "zsh":
        return ran.out.split("\n")[1::3]
    return [line.partition(",")[2].partition("\t")[0] for line in ran.out.split()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_offered_types_and_operations(idle: Project, shell: str) -> None:
    assert completed(idle, shell, "send", "Acc") == ["Account/"]
    assert completed(idle, shell, "send", "Konto/a", "g") == ["give-name"]


def test_each_command_is_offered_what_it_takes(idle: Project) -> None:
    assert completed(idle, "bash", "sen") == ["send"]
    assert completed(idle, "bash", "ask", "Note/1", "") == ["add", "copy"]
    assert completed(idle, "bash", "ask", "Note/1", "x") == []
    assert completed(idle, "bash", "list", "") == ["Account", "Note"]
    assert completed(idle, "bash", "messages", "N") == ["Note/"]
    assert completed(idle, "bash", "send", "--ke") == ["--key"]
    assert completed(idle, "bash", "db", "s") == ["sql", "stats"]


def test_an_app_that_cannot_be_imported_offers_nothing_and_prints_nothing(idle: Project, tmp_path: Path) -> None:
    broken = Project("broken", tmp_path, idle.database_url)
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken')")

    assert completed(broken, "bash", "send", "Acc") == []


def test_the_documented_line_completes_in_bash(idle: Project) -> None:
    text = (Path(__file__).parents[2] / "docs/how-to/command-line.md").read_text()
    [line] = [line.partition(" #")[0] for line in text.splitlines() if line.startswith('eval "$(_ENTITYCELERY')]
    session = f"""
        PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH
        {line}
        COMP_WORDS=(entitycelery -A {idle.name} send Account/a depo)
        COMP_CWORD=5
        function=$(complete -p entitycelery | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        $function entitycelery depo Account/a
        echo "${{COMPREPLY[@]}}"
    """
    ran = run_process(["bash", "-c", session], idle.folder)

    assert (ran.out, ran.err) == ("deposit\n", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_documented_lines_print_a_script(idle: Project, shell: str) -> None:
    text = (Path(__file__).parents[2] / "docs/how-to/command-line.md").read_text()
    assert f"{PROGRAM}={shell}_source entitycelery" in text

    ran = run_process([script("entitycelery")], idle.folder, **{PROGRAM: f"{shell}_source"})

    assert ran.code == 0
    assert f"{PROGRAM}={shell}_complete" in ran.out
