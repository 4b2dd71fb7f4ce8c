"""`entitycelery health live|ready`: what they look at, what they say, how they end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cli.health import runner_of, unready
from entitycelery.health.heartbeat import Heartbeat, HeartbeatFile
from entitycelery.placement import Placement, Runner
from entitycelery.storage.sql.store import SqlStore
from tests.cli.conftest import make_project
from tests.cli.support import Project, Ran, environment, run_process, script
from tests.health.records import runner
from tests.services import Services

BEAT = Heartbeat(worker="w-a", pid=100, at="", at_epoch_s=0.0, fresh_s=5.0)
REFRESH_S = 1.0
BOUNDED_S = 10.0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, services: Services) -> Iterator[Project]:
    """An app on SQLite whose schema is there, and no worker."""
    with ExitStack() as stack:
        made = make_project("sqlite", "probed", tmp_path_factory, services, stack)
        assert made("db", "upgrade").code == 0
        yield made


@pytest.fixture
def variant(project: Project, tmp_path: Path) -> Callable[[str], Project]:
    """The same app with one more line."""

    def make(line: str) -> Project:
        text = (project.folder / f"{project.name}.py").read_text()
        name = f"probed_{uuid4().hex[:8]}"
        (tmp_path / f"{name}.py").write_text(f"{text}\n{line}\n")
        return Project(name, tmp_path, project.database_url)

    return make


@pytest.fixture
def beat_file(tmp_path: Path) -> Path:
    """A fresh beat of the worker `w-a`."""
    path = tmp_path / "beat.json"
    HeartbeatFile(path, worker="w-a", pid=100, every_s=1.0, fresh_s=60.0).beat()
    return path


def aged(path: Path, age_s: float) -> Path:
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps({**fields, "at_epoch_s": fields["at_epoch_s"] - age_s}))
    return path


def live(folder: Path, *words: str, **variables: str) -> Ran:
    return run_process([script("entitycelery"), "health", "live", *words], folder, **variables)


def test_a_fresh_beat_lives(beat_file: Path, tmp_path: Path) -> None:
    said = live(tmp_path, "--file", str(beat_file))
    by_variable = live(tmp_path, "--output", "json", ENTITY_HEALTH_FILE=str(beat_file))

    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("live: worker w-a, pid 100, beat age s ")
    assert by_variable.json.items() >= {"live": True, "worker": "w-a", "pid": 100}.items()


def test_an_old_beat_does_not(beat_file: Path, tmp_path: Path) -> None:
    said = live(tmp_path, "--file", str(aged(beat_file, 61)))

    assert said.code == 1
    assert said.complaint.startswith("not live: the last beat of worker w-a (pid 100) is 61.")
    assert said.complaint.endswith("more than 60 s: its runner has ended or is stuck")


def test_the_age_may_be_chosen(beat_file: Path, tmp_path: Path) -> None:
    aged(beat_file, 30)

    assert live(tmp_path, "--file", str(beat_file), "--max-age", "1m").code == 0
    assert live(tmp_path, "--file", str(beat_file), "--max-age", "20").code == 1
    assert live(tmp_path, "--file", str(beat_file), "--max-age", "soon").code == 2


def test_no_beat_is_not_alive(tmp_path: Path) -> None:
    missing = live(tmp_path, "--file", str(tmp_path / "none"))
    folder = live(tmp_path, "--file", str(tmp_path))

    assert (missing.code, missing.complaint) == (1, f"not live: there is no heartbeat in {tmp_path / 'none'}")
    assert folder.code == 1
    assert folder.complaint.startswith("not live: the heartbeat file cannot be read: ")


def test_without_a_file_it_says_what_is_missing(tmp_path: Path) -> None:
    refused = live(tmp_path)

    assert refused.code == 2
    assert refused.complaint == "which heartbeat file? Give --file or ENTITY_HEALTH_FILE, or the app with -A"


def test_live_imports_no_app_no_celery_and_no_database(beat_file: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from entitycelery.cli import main\n"
        f"sys.argv = ['entitycelery', '-A', 'no_such_app', 'health', 'live', '--file', {str(beat_file)!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    print(end.code, sorted({'celery', 'kombu', 'sqlalchemy', 'psycopg2'} & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )

    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_live_asks_the_app_for_the_file_where_nothing_else_names_it(
    project: Project, beat_file: Path, variant: Callable[[str], Project]
) -> None:
    assert project("health", "live").code == 2

    assert variant(f"app.conf.entity_health_file = {str(beat_file)!r}")("health", "live").code == 0


# ready


def test_the_runner_of_a_beat_is_the_one_of_its_worker_and_of_no_other() -> None:
    before = runner("before", host="host-a", pid=100)
    mine = runner("a")

    assert runner_of([before, mine], BEAT, "host-a") == mine
    assert runner_of([before], BEAT, "host-a") is None


def test_without_a_beat_it_is_the_one_of_this_host_that_was_seen_last() -> None:
    dead, mine, elsewhere = runner("a", unseen_s=9.0), runner("b", host="host-a", unseen_s=0.5), runner("c", unseen_s=0)

    assert runner_of([dead, mine, elsewhere], None, "host-a") == mine
    assert runner_of([elsewhere], None, "host-a") is None


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (runner("a", unseen_s=0.2), None),
        (runner("a", unseen_s=0.2, locked=True), None),
        (runner("a", unseen_s=4.9, starved=True), None),
        (runner("a", unseen_s=5.1), "was last seen 5.1 s ago, more than 5 s"),
        (runner("a", unseen_s=0.2, leaving=True), "is leaving"),
        (runner("a", unseen_s=0.2, locked=False), "has lost its database session"),
        (None, "no runner of worker w-a (pid 100) is registered"),
    ],
    ids=str,
)
def test_a_runner_is_ready_while_it_is_registered_and_seen(found: Runner | None, complaint: str | None) -> None:
    said = unready(found, BEAT, REFRESH_S)

    assert said is None if complaint is None else complaint in str(said)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Decides what runners the store knows."""

    def register(*runners: Runner) -> None:
        monkeypatch.setattr(SqlStore, "placement", lambda _store: Placement(runners, ()))

    return register


def test_ready_is_a_registered_runner_that_was_seen_lately(project: Project, beat_file: Path, registered: Any) -> None:
    registered(runner("b", unseen_s=0.1), runner("a", unseen_s=0.1))

    said = project("health", "ready", "--file", str(beat_file))

    assert (said.code, said.out) == (0, "ready: worker w-a, node a@host-a, seen s ago 0.1\n")
    assert project("health", "ready", "--file", str(beat_file), "--output", "json").json["ready"] is True


@pytest.mark.parametrize("runners", [[], [runner("b", unseen_s=0.1)], [runner("a", unseen_s=99.0)]], ids=len)
def test_not_ready_is_exit_code_1(
    project: Project, beat_file: Path, registered: Any, runners: Sequence[Runner]
) -> None:
    registered(*runners)

    said = project("health", "ready", "--file", str(beat_file))

    assert said.code == 1
    assert said.complaint.startswith("not ready: ")


def test_ready_without_a_beat_in_the_named_file_is_exit_code_1(project: Project, tmp_path: Path) -> None:
    said = project("health", "ready", "--file", str(tmp_path / "none"))

    assert (said.code, said.complaint) == (1, f"not ready: there is no heartbeat in {tmp_path / 'none'}")


def bounded(project: Project, *words: str) -> Ran:
    began_s = time.monotonic()
    said = project(*words)
    assert time.monotonic() - began_s < BOUNDED_S
    return said


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ready_without_a_store_is_exit_code_69_in_bounded_time(
    project: Project, beat_file: Path, mute_port: int
) -> None:
    for port, why in ((1, "the store is unavailable: "), (mute_port, "the store did not answer within 1 s")):
        url = f"postgresql://postgres@127.0.0.1:{port}/nothing"

        said = bounded(project, "--database-url", url, "health", "ready", "--file", str(beat_file), "--timeout", "1")

        assert said.code == 69
        assert said.complaint.startswith(f"not ready: {why}")


def test_ready_without_a_broker_is_exit_code_69_in_bounded_time(
    beat_file: Path, registered: Any, variant: Callable[[str], Project], mute_port: int
) -> None:
    registered(runner("a", unseen_s=0.1))
    for port, why in ((1, "the broker is unavailable: "), (mute_port, "the broker ")):
        words = ("health", "ready", "--file", str(beat_file), "--timeout", "1")

        url = f"redis://127.0.0.1:{port}/0"

        said = bounded(variant(f"app.conf.update(broker_url={url!r}, broker_transport=None)"), *words)

        assert said.code == 69
        assert said.complaint.startswith(f"not ready: {why}")
