"""The demo, with its real parts."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from tests.cli.support import Ran, environment, script
from tests.waiting import eventually

ENDS_WITHIN_S = 110
FEW = ["--transfers", "500"]


class Demo:
    """A demo that runs, with a temporary directory and a session of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.err = folder / "err"
        (folder / "tmp").mkdir()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [script("entitycelery"), "demo", *words],
                cwd=folder,
                env=environment(TMPDIR=str(folder / "tmp"), PYTHONUNBUFFERED="1"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def end(self) -> Ran:
        """Wait for its end."""
        code = self.process.wait(ENDS_WITHIN_S)
        return Ran(code, self.out.read_text(), self.err.read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that was started in its temporary directory or by it, and lives."""
        return [p for p in psutil.process_iter() if p.pid == self.process.pid or self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("TMPDIR", "").startswith(str(self.folder / "tmp"))
        except (psutil.Error, OSError):
            return False

    def left_behind(self) -> list[str]:
        return [path.name for path in (self.folder / "tmp").iterdir()]


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[list[Demo]]:
    """Demos that are ended with the test, however it ends."""
    started: list[Demo] = []
    yield started
    for demo in started:
        for process in demo.processes():
            process.kill()
        demo.process.wait(30)


def assert_exactly_once(document: dict[str, object], sent: int) -> None:
    assert document["ok"] is True
    assert (document["sent"], document["applied"]) == (sent, sent)
    assert (document["lost"], document["doubled"], document["strange"]) == (0, 0, 0)
    assert (document["order_kept"], document["money_after"]) == (True, document["money_before"])


def test_the_demo_kills_a_worker_and_every_transfer_is_applied_exactly_once(tmp_path: Path, demos: list[Demo]) -> None:
    demos.append(Demo(tmp_path))

    ran = demos[0].end()

    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[-1] == "Every transfer was applied exactly once."
    shown = {line[2:16].strip(): line[16:].split()[0] for line in lines[-15:-2]}
    assert (shown["sent"], shown["applied"], shown["lost"], shown["doubled"]) == ("5,000", "5,000", "0", "0")
    assert (shown["money before"], shown["money after"], shown["order kept"]) == ("2,000,000", "2,000,000", "yes")
    # The worker, two of its pool, and its runner process.
    assert shown["killed"] == "4"
    assert [line for line in lines if line.startswith("kill -9 ")]
    assert max(map(len, lines)) <= 80 + len(str(tmp_path))
    assert demos[0].left_behind() == []
    assert demos[0].processes() == []


def test_an_entry_that_was_altered_behind_its_back_fails_the_demo(tmp_path: Path, demos: list[Demo]) -> None:
    demos.append(Demo(tmp_path, "--json", *FEW))
    [folder] = eventually(lambda: list((tmp_path / "tmp").glob("entitycelery-demo-*")))
    trigger = """
        CREATE TRIGGER alter_after_EVENT AFTER EVENT ON state WHEN new.entity_id = 'account-007'
        AND json_array_length(new.state, '$.debits') > 0 AND json_extract(new.state, '$.debits[0][1]') > 0
        BEGIN
            UPDATE state SET state = json_set(new.state, '$.debits[0][1]', -1)
            WHERE type = new.type AND entity_id = new.entity_id;
        END;
    """
    alter = "".join(trigger.replace("EVENT", event) for event in ("INSERT", "UPDATE"))
    # mode=rw: it is the demo that makes the file.
    eventually(lambda: sqlite3.connect(f"file:{folder / 'store.db'}?mode=rw", uri=True).executescript(alter))

    ran = demos[0].end()

    assert ran.code == 1
    assert ran.json["ok"] is False
    assert (ran.json["lost"], ran.json["strange"], ran.json["doubled"]) == (1, 1, 0)
    assert ran.err.splitlines()[-1].startswith("entitycelery: FAILED. lost: 1, strange entries: 1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", ["Starting two workers", "  sent"])
def test_an_interrupted_demo_leaves_no_process_and_no_file(
    tmp_path: Path, demos: list[Demo], number: signal.Signals, line: str
) -> None:
    demos.append(Demo(tmp_path))
    eventually(lambda: line in demos[0].out.read_text())

    os.killpg(demos[0].process.pid, number)
    ran = demos[0].end()

    assert ran.code == 128 + number
    assert "Traceback" not in ran.err
    eventually(lambda: demos[0].processes() == [])
    assert demos[0].left_behind() == []


def test_a_file_that_is_somebodys_is_refused_and_kept(tmp_path: Path, demos: list[Demo]) -> None:
    file = tmp_path / "mine.db"
    file.write_text("precious")
    demos.append(Demo(tmp_path, "--database-url", f"sqlite:///{file}"))

    ran = demos[0].end()

    assert ran.code == 2
    assert ran.complaint == f"the demo needs a store of its own, and {file} exists already"
    assert file.read_text() == "precious"


def test_servers_that_do_not_answer_are_exit_code_69(tmp_path: Path, demos: list[Demo]) -> None:
    for number, words in enumerate(
        (["--database-url", "postgresql://postgres@127.0.0.1:1/x"], ["--broker", "redis://127.0.0.1:1/0"])
    ):
        (tmp_path / str(number)).mkdir()
        demos.append(Demo(tmp_path / str(number), *words))

        ran = demos[-1].end()

        assert ran.code == 69
        assert ran.complaint
        assert demos[-1].left_behind() == []


def schemas(url: str) -> list[str]:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'")
        found = [row[0] for row in cursor.fetchall()]
    connection.close()
    return sorted(found)


@pytest.mark.chaos
def test_the_demo_on_postgresql_and_redis(tmp_path: Path, demos: list[Demo], postgres_url: str, redis_url: str) -> None:
    database = redis.Redis.from_url(redis_url)
    before = set(database.keys())
    demos.append(Demo(tmp_path, "--database-url", postgres_url, "--broker", redis_url, "--json"))

    ran = demos[0].end()

    assert ran.code == 0
    assert_exactly_once(json.loads(ran.out), 5_000)
    assert schemas(postgres_url) == ["information_schema", "public"]
    assert [key for key in set(database.keys()) - before if b"demo_" in key] == []


@pytest.mark.chaos
def test_the_demo_on_postgresql_and_rabbitmq(
    tmp_path: Path, demos: list[Demo], postgres_url: str, amqp_url: str
) -> None:
    demos.append(Demo(tmp_path, "--database-url", postgres_url, "--broker", amqp_url, "--json"))

    ran = demos[0].end()

    assert ran.code == 0
    assert_exactly_once(json.loads(ran.out), 5_000)
