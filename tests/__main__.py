"""`python -m tests [pytest's arguments]`: all tests, in three runs that end with one line.

First what needs no clock, several at a time; then what runs workers and waits for them to notice something, two at a
time; then, alone on the machine, what bounds how long that takes: whoever else uses the processors would be measured
too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter

OF_WORKERS = ("tests/celery", "tests/chaos", "tests/cluster", "tests/crashes", "tests/health", "tests/matrix")
# Of those, what fails where something took longer than it may.
ALONE = (
    "tests/celery/test_due_moments.py",
    "tests/chaos/test_databases.py",
    "tests/cluster/test_cuts.py",
    "tests/cluster/test_freezes.py",
    "tests/cluster/test_machine_loss.py",
    "tests/cluster/test_rebalancing.py",
    "tests/cluster/test_shutdown.py",
    "tests/cluster/test_starvation.py",
    "tests/cluster/test_takeover.py",
    "tests/cluster/test_traps.py",
)
# One more than there are processors: most tests wait for a disk or for a process to start.
AT_ONCE = ("-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal")
TWO_AT_ONCE = ("-n", "2", "--dist", "worksteal")
_NO_TESTS = 5
_COUNTED = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected|xfailed|warnings?)\b")
_LAST_LINE = re.compile(r"^=*.* in [0-9.]+s.*$")


def main() -> int:
    """Run all three; 0 only if none failed and there was something to run."""
    began_s = time.monotonic()
    arguments = sys.argv[1:]
    runs = [
        run([*AT_ONCE, "tests", *without(*OF_WORKERS), *arguments]),
        run([*TWO_AT_ONCE, *OF_WORKERS, *without(*ALONE), *arguments]),
        run([*ALONE, *arguments]),
    ]
    codes = [code for code, _ in runs]
    counted: Counter[str] = sum((counts for _, counts in runs), Counter())
    listed = ", ".join(f"{number} {what}" for what, number in counted.items())
    print(f"===== {listed or 'no tests ran'} in {time.monotonic() - began_s:.2f}s =====")
    if set(codes) == {_NO_TESTS}:
        return _NO_TESTS
    return next((code for code in codes if code not in (0, _NO_TESTS)), 0)


def without(*paths: str) -> list[str]:
    """What has pytest leave these out."""
    return [f"--ignore={path}" for path in paths]


def run(arguments: list[str]) -> tuple[int, Counter[str]]:
    """One run of pytest; its exit code, and what its last line counts."""
    command = [sys.executable, "-m", "pytest", *arguments]
    counts: Counter[str] = Counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if _LAST_LINE.match(line) and (found := _COUNTED.findall(line)):
                counts = Counter({what.rstrip("s") if what.startswith("error") else what: int(n) for n, what in found})
    return process.returncode, counts


if __name__ == "__main__":
    sys.exit(main())
