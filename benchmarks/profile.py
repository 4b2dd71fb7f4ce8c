"""Where a drain's time goes: samples of the pool processes' stacks while they work off a backlog, and a picture of it.

Waiting counts: a sample in a statement is time until PostgreSQL answered. py-spy takes the samples, from outside.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.bench import Setup, fresh_database, send_backlog, worker, worker_processes

_SAMPLES_PER_S = 200
_ACCOUNTS = 10_000
_DRAIN = "_drain (entitycelery/runtime/drain.py"

# The innermost frame that is listed here says what a sample was doing.
PARTS = {
    "candidates (entitycelery/storage/sql/mailbox.py": "look for mail",
    "claim (entitycelery/storage/sql/dialects/": "lock entities",
    "read (entitycelery/storage/sql/mailbox.py": "read mail",
    "read (entitycelery/storage/sql/state.py": "note the batch, read states",
    "run (entitycelery/runtime/turn_runner.py": "run turns",
    "commit (entitycelery/storage/sql/session.py": "commit",
    "release (entitycelery/storage/sql/session.py": "release entities",
    _DRAIN: "the drain itself",
}
_COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f")


def profile(setup: Setup, picture: Path | None) -> dict[str, float]:
    """The share of each part of a drain, in percent; drawn into `picture` as SVG where one is given."""
    with fresh_database(setup) as database:
        send_backlog(setup.messages * 3, _ACCOUNTS)
        with worker(setup):
            stacks = _sampled(duration_s=max(2, setup.messages // 10_000))
            database.await_true("SELECT NOT EXISTS (SELECT 1 FROM entity_default.message)")
    counted = _counted(stacks)
    total = sum(counted.values())
    shares = {part: 100 * counted[part] / total for part in PARTS.values()}
    if picture is not None:
        picture.write_text(_svg(shares))
    return {f"drain, {part}, %": share for part, share in shares.items()}


def _sampled(duration_s: int) -> list[tuple[str, int]]:
    """Collapsed stacks of all Python threads of the worker, outermost frame first, and how often each was seen."""
    [parent, *_] = worker_processes()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks"
        subprocess.run(
            [Path(sys.executable).with_name("py-spy"), "record", "--pid", str(parent.pid), "--subprocesses", "--idle"]
            + ["--format", "raw", "--rate", str(_SAMPLES_PER_S), "--duration", str(duration_s), "--output", raw],
            check=True,
            capture_output=True,
        )
        lines = [line.rpartition(" ") for line in raw.read_text().splitlines()]
    return [(stack, int(count)) for stack, _, count in lines]


def _counted(stacks: list[tuple[str, int]]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for stack, count in stacks:
        if _DRAIN in stack:
            counted[_part(stack)] += count
    return counted


def _part(stack: str) -> str:
    for frame in reversed(stack.split(";")):
        for known, part in PARTS.items():
            # Some versions of py-spy say the class as well: Drain._drain (...)
            if f" {known}" in f" {frame}" or f".{known}" in frame:
                return part
    raise ValueError(f"no part of a drain: {stack}")


def _svg(shares: dict[str, float]) -> str:
    """One bar from 0 to 100 %, its parts in the order in which a drain comes to them, and a legend."""
    width, bar, line = 760, 48, 22
    parts = [(name, share) for name, share in shares.items() if share >= 0.5]
    drawn, x = [], 0.0
    for index, (name, share) in enumerate(parts):
        length, colour = width * share / 100, _COLOURS[index % len(_COLOURS)]
        y = bar + 30 + line * index
        drawn.append(f'<rect x="{x:.1f}" y="0" width="{length:.1f}" height="{bar}" fill="{colour}"/>')
        drawn.append(f'<rect x="0" y="{y - 12}" width="14" height="14" fill="{colour}"/>')
        drawn.append(f'<text x="22" y="{y}">{share:.0f} % {name}</text>')
        x += length
    height = bar + 30 + line * len(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="15">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )
