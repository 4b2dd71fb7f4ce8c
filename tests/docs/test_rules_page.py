"""The page of rules names every test that breaks one, and no test that is not there."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import ROOT
from tests.mutants.all_mutants import MUTANTS
from tests.mutants.mutant import Mutant

PAGE = (ROOT / "docs" / "explanation" / "rules.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| rule |")]
_TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)


def names_of_tests(pattern: str) -> set[str]:
    """The names of all tests in these files."""
    return {name for path in (ROOT / "tests").glob(pattern) for name in _TEST.findall(path.read_text())}


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


def test_every_row_has_a_rule_and_names_tests_that_exist() -> None:
    existing = names_of_tests("**/test_*.py")

    assert ROWS
    for row in ROWS:
        assert row.count(" | ") == 2, row
        assert named_in(row), row
        assert named_in(row) <= existing, row


def test_every_test_that_breaks_a_rule_is_on_the_page() -> None:
    breaking = {name for name in names_of_tests("storage/test_protocol_*.py") if "_would_" in name}

    assert breaking - named_in(PAGE) == set()


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name)
def test_every_mutant_is_on_the_page_with_its_rule_and_its_tests(mutant: Mutant) -> None:
    [row] = [row for row in ROWS if f"mutant `{mutant.name}`" in row]

    assert row.startswith(f"| {mutant.rule} |")
    assert named_in(row) == {test.split("::")[1].partition("[")[0] for test in mutant.tests}


def test_no_mutant_is_on_the_page_that_is_not_there() -> None:
    assert set(re.findall(r"mutant `([\w-]+)`", PAGE)) == set(MUTANTS)
