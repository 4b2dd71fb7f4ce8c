"""Breaks one rule for a whole run of pytest, and writes down how its tests ended.

ENTITY_MUTANT=loser-is-a-message ENTITY_MUTANT_REPORT=report.json python -m pytest -p tests.mutants.plugin TEST ...

Without a name nothing is broken.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import waiting
from tests.mutants.all_mutants import MUTANTS

NAME = "ENTITY_MUTANT"
REPORT = "ENTITY_MUTANT_REPORT"
_PATIENCE_S = 1.5

_outcomes: dict[str, str] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    # Before anything of the tests is imported, which takes the library's functions by their names.
    name = os.environ.get(NAME)
    if name:
        # Never undone: the process ends with its run.
        MUTANTS[name].break_it(pytest.MonkeyPatch())
        # What a broken library does not do is not waited for as long.
        waiting.eventually.__defaults__ = (_PATIENCE_S, 0.02)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes.setdefault(report.nodeid, report.outcome if report.when == "call" else f"{report.when} failed")


def pytest_sessionfinish() -> None:
    path = os.environ.get(REPORT)
    if path:
        Path(path).write_text(json.dumps(_outcomes))
