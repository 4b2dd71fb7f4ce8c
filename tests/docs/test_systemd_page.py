"""The units of the page: valid, and their commands do what the page says."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from entitycelery.health.heartbeat import HeartbeatFile
from tests.cli.support import environment
from tests.docs.blocks import blocks_of
from tests.waiting import eventually

PAGE = Path("docs/how-to/systemd.md")
HOME = "/srv/shop"
INSTANCE = "1"
SPARE_S = 10
UNITS = ("shop-worker@.service", "shop-worker-health@.service", "shop-worker-health@.timer")


def unit_text(name: str) -> str:
    [found] = [block.text for block in blocks_of(PAGE) if block.text.startswith(f"# /etc/systemd/system/{name}\n")]
    return found


class Unit(configparser.ConfigParser):
    """A unit: as systemd does it keeps a key that is given again."""

    def __init__(self, text: str, home: Path) -> None:
        super().__init__(interpolation=None, delimiters="=", strict=False)
        actual = text.replace(HOME, str(home)).replace("/run/", f"{home}/run/").replace("%%", "\0")
        self.text = actual.replace("%i", INSTANCE).replace("\0", "%")
        self.read_string(self.text)

    def optionxform(self, optionstr: str) -> str:
        return optionstr

    @property
    def variables(self) -> dict[str, str]:
        lines = [line.partition("=")[2] for line in self.text.splitlines() if line.startswith("Environment=")]
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def command(self) -> list[str]:
        return shlex.split(self["Service"]["ExecStart"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the page calls /srv/shop: the page's app, and the commands in bin; /run is below it."""
    [app] = [block.text for block in blocks_of(PAGE) if block.text.startswith("# shop.py")]
    (tmp_path / "shop.py").write_text(app)
    (tmp_path / "run" / f"shop-worker-{INSTANCE}").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("celery", "entitycelery"):
        (tmp_path / "bin" / name).symlink_to(Path(sys.executable).parent / name)
    return tmp_path


def test_systemd_takes_the_units(home: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for name in UNITS:
        # A template is looked at by one of its instances.
        text = unit_text(name).replace(HOME, str(home)).replace("User=shop\n", "")
        (home / name.replace("@", f"@{INSTANCE}")).write_text(text)

    checked = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(home.glob("shop-worker*")))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    # As root it looks at other units of the machine too: what it says of ours counts.
    assert "shop-worker" not in checked.stderr


def test_there_is_time_for_turns_to_end_and_only_the_worker_is_asked(home: Path) -> None:
    worker = Unit(unit_text("shop-worker@.service"), home)

    assert worker["Service"]["KillMode"] == "mixed"
    assert int(worker["Service"]["TimeoutStopSec"]) >= float(worker.variables["ENTITY_DRAIN_TIMEOUT_S"]) + SPARE_S
    beat = Path(worker.variables["ENTITY_HEALTH_FILE"])
    assert str(beat.parent.relative_to(home / "run")) == worker["Service"]["RuntimeDirectory"]
    assert Unit(unit_text("shop-worker-health@.service"), home).variables["BEAT"] == str(beat)


def test_the_worker_starts_writes_its_beat_and_ends_on_sigterm(home: Path) -> None:
    worker = Unit(unit_text("shop-worker@.service"), home)
    log = home / "worker.log"

    with log.open("wb") as out:
        process = subprocess.Popen(
            worker.command(),
            cwd=worker["Service"]["WorkingDirectory"],
            env=environment(**worker.variables),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        eventually(lambda: f"shop-{INSTANCE}@" in log.read_text() and " ready." in log.read_text(), timeout_s=60)
        eventually(Path(worker.variables["ENTITY_HEALTH_FILE"]).exists)
        process.terminate()
        assert process.wait(int(worker["Service"]["TimeoutStopSec"])) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.mark.parametrize(
    ("fresh_s", "restarted"), [(None, False), (3_600.0, False), (-1.0, True)], ids=["starting", "live", "stuck"]
)
def test_the_check_restarts_a_worker_that_is_stuck_and_no_other(
    home: Path, fresh_s: float | None, restarted: bool
) -> None:
    check = Unit(unit_text("shop-worker-health@.service"), home)
    called = home / "called"
    (home / "bin" / "systemctl").write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    (home / "bin" / "systemctl").chmod(0o755)
    if fresh_s is not None:
        HeartbeatFile(check.variables["BEAT"], worker="w1", pid=7, every_s=1.0, fresh_s=fresh_s).beat()

    done = subprocess.run(
        check.command(), env=environment(**check.variables), capture_output=True, timeout=60, check=False
    )

    assert done.returncode == 0
    assert called.exists() is restarted
    if restarted:
        assert called.read_text() == f"try-restart shop-worker@{INSTANCE}.service\n"


def test_the_timer_looks_again_and_again(home: Path) -> None:
    timer: Mapping[str, str] = Unit(unit_text("shop-worker-health@.timer"), home)["Timer"]

    assert {"OnActiveSec", "OnUnitActiveSec"} <= set(timer)
