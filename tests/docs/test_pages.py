"""Every page says what is: its blocks are run as a reader would run them, with a real worker where it starts one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of, pages

PAGES = [page for page in pages() if any(block.language != "text" for block in blocks_of(page))]

SHOWN_SERVERS = {
    "postgres_url": "://localhost/shop",
    "pooled_url": "://localhost:6432/shop",
    "redis_url": "://localhost:6379/0",
}

NOT_RUN = {
    "README.md: pip install .": "the tests run in an environment that has it",
}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_of_the_page_does_what_it_shows(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = (ROOT / page).read_text()
    servers = [
        f"{shown}=://{request.getfixturevalue(fixture).partition('://')[2]}"
        for fixture, shown in SHOWN_SERVERS.items()
        if shown in text
    ]

    process = subprocess.Popen(
        [sys.executable, "-m", "tests.docs.page", str(page), str(tmp_path), *servers],
        cwd=ROOT,
        env=_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        raise

    assert process.returncode == 0, said


def test_blocks_that_are_not_run_are_these_and_say_why() -> None:
    found = {
        f"{page}: {block.first_line.removeprefix('$ ')}": block.not_run
        for page in pages()
        for block in blocks_of(page)
        if block.not_run
    }

    assert found == NOT_RUN


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENTITY_", "CELERY_"))}
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HOME": str(folder),
    }
