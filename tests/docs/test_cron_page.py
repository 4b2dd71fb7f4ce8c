"""The crontab line, the systemd units and the CronJob of the page: parsed, and their commands run, twice."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from croniter import croniter

from tests.cli.support import environment
from tests.docs.blocks import blocks_of

PAGE = Path("docs/how-to/cron-from-outside.md")
HOME = "/srv/bank"

_CRON_LINE = re.compile(r"((?:\S+ ){5})(.+)")
_VARIABLE = re.compile(r"\$\$|\$\((\w+)\)")


def block(beginning: str) -> str:
    """The one block of the page that begins so."""
    [found] = [block.text for block in blocks_of(PAGE) if block.text.startswith(beginning)]
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the page calls /srv/bank: the page's app, and the commands in bin."""
    (tmp_path / "bank.py").write_text(block("# bank.py"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "entitycelery").symlink_to(Path(sys.executable).parent / "entitycelery")
    return tmp_path


def run_twice(command: list[str], folder: Path, **variables: str) -> None:
    """Run a command twice, as a scheduler would: one message is stored, and the key is the day's."""
    for _ in range(2):
        done = subprocess.run(
            command, cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    listed = [str(Path(sys.executable).parent / "entitycelery"), "-A", "bank", "--output", "json", "messages"]
    done = subprocess.run(listed, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    [message] = json.loads(done.stdout)
    assert (message["address"], message["operation"]) == ("Account/alice", "pay_interest")
    assert message["id"][14] == "5", "an id of version 5 is made from a key"


def path_of(variables: Mapping[str, str], home: Path) -> str:
    return variables["PATH"].replace(HOME, str(home))


def test_the_crontab_line_runs_every_day_and_sends_once_a_day(home: Path) -> None:
    setting, line = block("PATH=").splitlines()
    matched = _CRON_LINE.fullmatch(line)
    assert matched is not None
    schedule, command = matched.groups()

    times = croniter(schedule.strip(), datetime(2030, 1, 1, tzinfo=UTC))
    assert [times.get_next(datetime).isoformat() for _ in range(2)] == [
        "2030-01-01T03:05:00+00:00",
        "2030-01-02T03:05:00+00:00",
    ]
    # cron ends the command at a % that is not escaped.
    assert not re.search(r"(?<!\\)%", command)
    name, _, value = setting.partition("=")
    plain = command.replace(r"\%", "%").replace(HOME, str(home))
    run_twice(["/bin/sh", "-c", plain], home, HOME=str(home), PATH=path_of({name: value}, home))


def test_the_systemd_units_are_valid_and_their_command_sends_once_a_day(home: Path) -> None:
    texts = {name: block(f"# /etc/systemd/system/{name}") for name in ("bank-interest.service", "bank-interest.timer")}
    service, timer = (unit(text) for text in texts.values())
    for name, text in texts.items():
        (home / name).write_text(text.replace(HOME, str(home)))

    assert timer["Timer"]["Persistent"] == "true"
    if shutil.which("systemd-analyze"):
        # As root it looks at other units of the machine too: what it says of ours counts.
        checked = subprocess.run(
            ["systemd-analyze", "verify", *map(str, sorted(home.glob("bank-interest.*")))],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "bank-interest" not in checked.stderr
        calendar = subprocess.run(
            ["systemd-analyze", "calendar", timer["Timer"]["OnCalendar"]], capture_output=True, timeout=60, check=False
        )
        assert calendar.returncode == 0
    written = service["Service"]["ExecStart"]
    assert not re.search(r"(?<!%)%(?!%)|(?<!\$)\$(?!\$)", written)
    command = shlex.split(written.replace("%%", "%").replace("$$", "$"))
    assert Path(command[0]).is_absolute()
    variable, _, value = service["Service"]["Environment"].partition("=")
    run_twice(command, home, PATH=path_of({variable: value}, home))


def unit(text: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, delimiters="=")
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    return parsed


def test_the_cron_job_is_one_and_its_container_sends_once_a_day(home: Path) -> None:
    job: Any = yaml.safe_load(block("apiVersion:"))

    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    zone = ZoneInfo(spec["timeZone"])
    first = croniter(spec["schedule"], datetime(2030, 1, 1, tzinfo=zone)).get_next(datetime)
    assert first == datetime(2030, 1, 1, 3, 5, tzinfo=zone)
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("OnFailure", "Never")
    [container] = pod["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    command = [expanded(word, variables) for word in (*container["command"], *container["args"])]
    assert container["workingDir"] == HOME
    assert timedelta(seconds=spec["startingDeadlineSeconds"]) < timedelta(days=1)
    run_twice(command, home, PATH=f"{home}/bin:/usr/bin:/bin", **variables)


def expanded(word: str, variables: Mapping[str, str]) -> str:
    """A word of command or args as Kubernetes gives it to the container: `$(NAME)` replaced, `$$` a `$`."""
    return _VARIABLE.sub(lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), word)
