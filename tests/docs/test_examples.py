"""Every example does what it says, as a program beside a real worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.shown import check_output

EXAMPLES = ROOT / "examples"

SAYS = {
    "saga": """
order 17: 2 items
order 18: 1 of tea left
undone: ['put_back', 'refund']
1 tea, 2 cups, 10 paid
""",
    "approval": """
ada waits, bob waits, cid waits
too late: over
ada: 100 approved after 0 reminders
bob: 200 declined after 1 reminders
cid: 300 expired after 1 reminders
""",
    "bank": """
150 transfers, money before 300, after 300
refused, 100 left
""",
    "leader_loop": """
order 17: 2 tea
order 18: 1 coffee
the later loop has the larger fence
""",
    "orders": """
first:  2 tea
again:  2 tea
order 18 is refused, sold out: tea
order 18 is new
order test: nothing
mails: 2
""",
    "nightly_report": """
2026-03-28: 28 reported
2026-03-29: 29 reported
2026-03-30: 30 reported
3 nights, then 0
""",
    "reminder": """
alice orders 2 items
alice: 0 reminders, 0 timers
bob: 1 reminders, 0 timers
""",
    "fan_out": """
{'words': 2967, 'torn': 10}
calls in its journal: 1001
""",
    "rate_limiter": """
5 of 20 calls passed
""",
}


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Starts a worker of an example in an empty folder."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> None:
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", name, "worker", "-c2"],
                cwd=tmp_path,
                env=_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        workers.append(worker)

    yield start
    for worker in workers:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)


@pytest.mark.parametrize("name", SAYS)
def test_the_example_says_what_it_promises(name: str, tmp_path: Path, start_worker: Callable[[str], None]) -> None:
    start_worker(name)

    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stderr + (tmp_path / "worker.log").read_text()
    check_output(name, SAYS[name], done.stdout)


def test_every_example_is_listed_and_run() -> None:
    modules = {path.stem for path in EXAMPLES.glob("*.py")}

    listed = {name for name in modules if f"[{name}.py]({name}.py)" in (EXAMPLES / "README.md").read_text()}

    assert modules == set(SAYS) == listed


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENTITY_", "CELERY_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(ROOT)])}
