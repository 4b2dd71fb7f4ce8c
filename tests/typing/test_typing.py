"""mypy --strict and pyright agree with the marks in this folder.

A wrong call is marked `# type: ignore[...]`, and a mark that is not needed is an error: so a wrong call that a
checker accepts fails here, and so does a right one that it rejects.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WRONG = re.compile(r"# type: ignore\[[a-z, -]+\]$")


def said_by(*command: str) -> tuple[int, str]:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def pyright() -> str:
    """pyright's own download must have happened: it works offline from then on."""
    code, said = said_by("pyright", "--version")
    if code:
        if os.environ.get("ENTITY_TEST_STRICT") == "1":
            pytest.fail(f"pyright is required: {said}", pytrace=False)
        pytest.skip(f"pyright does not start: {said}")
    return "pyright"


def test_mypy_rejects_every_wrong_line_and_no_other() -> None:
    code, said = said_by("mypy", "--strict", "--follow-imports=silent", "-p", "tests.typing")

    assert code == 0, said


def test_pyright_rejects_every_wrong_line_and_no_other(pyright: str) -> None:
    code, said = said_by(pyright, "--pythonpath", sys.executable, str(HERE))

    assert code == 0, said


def test_a_mark_that_is_not_needed_is_an_error_to_pyright(pyright: str, tmp_path: Path) -> None:
    lines = (HERE / "rejected_calls.py").read_text().splitlines()
    harmless = tmp_path / "harmless.py"
    harmless.write_text(f"{lines[0]}\nprint(1)  # type: ignore[arg-type]\n")

    code, said = said_by(pyright, "--pythonpath", sys.executable, str(harmless))

    assert code == 1
    assert 'Unnecessary "# type: ignore"' in said


@pytest.mark.parametrize("path", sorted(HERE.glob("rejected_*.py")), ids=lambda path: path.stem)
def test_files_of_wrong_calls_have_the_check_turned_on_and_name_each_fault(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    marked = [line for line in lines if "type: ignore" in line]

    assert "reportUnnecessaryTypeIgnoreComment=true" in first
    assert len(marked) >= 10
    assert [line for line in marked if not WRONG.search(line)] == []
    assert not any("pyright: ignore" in line for line in lines)


@pytest.mark.parametrize("path", sorted(HERE.glob("accepted_*.py")), ids=lambda path: path.stem)
def test_files_of_right_calls_have_no_marks(path: Path) -> None:
    assert "ignore" not in "".join(path.read_text().splitlines()[1:])
