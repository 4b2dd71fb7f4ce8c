"""The rules that no test breaks within itself: with each of them broken, the tests named for it fail.

Each mutant has a run of pytest in a process of its own. It is a fork of one that has imported the libraries, and
nothing of the tests: importing is most of what such a short run would take.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutants.all_mutants import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.plugin import NAME, REPORT

ROOT = Path(__file__).parents[2]
Ran = tuple[int | None, dict[str, str], str]

_RUN_TIMEOUT_S = 100.0
_TEST_TIMEOUT_S = 30
_SHARES_THE_TESTS = "PYTEST_XDIST_WORKER"
_IMPORTED_ALREADY = "ignore:Module already imported"

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["psycopg2", "pytest_timeout", "sqlalchemy.dialects.postgresql", "tests.mutants.plugin", "tests.services"]
)


def run(tests: list[str], folder: Path, mutant: Mutant | None) -> Ran:
    """The exit code of a run of these tests, how each of them ended, and what was printed."""
    report, output = folder / "report.json", folder / "output.txt"
    process = _forks.Process(target=_pytest, args=(tests, mutant.name if mutant else "", report, output))
    process.start()
    process.join(_RUN_TIMEOUT_S)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode, json.loads(report.read_text()) if report.exists() else {}, output.read_text()


def _pytest(tests: list[str], mutant: str, report: Path, output: Path) -> None:
    written = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.chdir(ROOT)
    # Other plugins take longer to import than these tests to run.
    os.environ.update({NAME: mutant, REPORT: str(report), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    options = [f"--basetemp={report.parent / 'tests'}", f"--timeout={_TEST_TIMEOUT_S}", "-W", _IMPORTED_ALREADY]
    plugins = ["-p", "pytest_timeout", "-p", "tests.mutants.plugin", "-p", "no:cacheprovider"]
    os._exit(pytest.main(["-q", "--tb=short", *plugins, *options, *tests]))


@pytest.fixture(scope="module")
def run_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ran]]:
    """The run of a mutant. Two go at a time, ahead of their tests; where other processes have a part of the tests, and
    nobody knows which, each as it is asked for."""

    def run_now(name: str) -> Ran:
        return run([*MUTANTS[name].tests], tmp_path_factory.mktemp(name), MUTANTS[name])

    if _SHARES_THE_TESTS in os.environ:
        yield run_now
        return
    here = [item for item in request.session.items if item.path == Path(__file__) and hasattr(item, "callspec")]
    with ThreadPoolExecutor(2) as pool:
        begun = {name: pool.submit(run_now, name) for name in (item.callspec.params["name"] for item in here)}
        yield lambda name: begun[name].result()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found_out(name: str, run_of: Callable[[str], Ran]) -> None:
    code, outcomes, output = run_of(name)

    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert outcomes == dict.fromkeys(MUTANTS[name].tests, "failed"), output


def test_the_tests_that_find_broken_rules_pass_without_them(tmp_path: Path) -> None:
    tests = sorted({test for mutant in MUTANTS.values() for test in mutant.tests})

    code, outcomes, output = run(tests, tmp_path, None)

    assert outcomes == dict.fromkeys(tests, "passed"), output
    assert code == pytest.ExitCode.OK, output
