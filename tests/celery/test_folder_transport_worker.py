"""A real worker on the folder transport: stock tasks, prefork, 64 queues."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery

from entitycelery.transports.folder import configure
from tests.waiting import eventually

QUEUES = [f"q{number}" for number in range(64)]
APP = """
import os, time
from pathlib import Path
from celery import Celery
from entitycelery.transports.folder import configure

here = Path(__file__).parent
app = Celery("tiny")
app.conf.update(configure(app.conf, here / "broker"))
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1)

@app.task(name="note")
def note(number, sent_s):
    with open(here / "notes", "a") as file:
        file.write(f"{number} {time.time() - sent_s}\\n")

@app.task(name="block")
def block(number):
    with open(here / "blocked", "a") as file:
        file.write(f"{number}\\n")
    while not (here / "go").exists():
        time.sleep(0.02)
"""


class Worker:
    """One `celery worker` subprocess and what it said."""

    def __init__(self, home: Path, name: str) -> None:
        self.log = home / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", "tiny", "worker", "-c2", "-P", "prefork", "-E"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(home), *filter(None, sys.path)]),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "-n", f"{name}@here", "-Q", ",".join(QUEUES), "-l", "INFO"],
                cwd=home,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(lambda: " ready." in self.log.read_text())

    def stop(self) -> None:
        """A cold stop: what has not ended goes back to the broker."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def terminate(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(APP)
    return tmp_path


@pytest.fixture
def app(home: Path) -> Iterator[Celery]:
    with Celery("client", set_as_current=False) as client:
        client.conf.update(configure(client.conf, home / "broker"))
        yield client


@pytest.fixture
def worker(home: Path) -> Iterator[Worker]:
    running = Worker(home, "one")
    yield running
    running.process.kill()
    running.process.wait(30)


def notes(home: Path) -> list[tuple[int, float]]:
    lines = (home / "notes").read_text().split("\n")[:-1] if (home / "notes").exists() else []
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def send(app: Celery, number: int) -> None:
    app.send_task("note", args=(number, time.time()), queue=QUEUES[number % len(QUEUES)], ignore_result=True)


def messages(home: Path) -> list[Path]:
    return list((home / "broker" / "queues").glob("q*/*.json"))


def test_worker_runs_each_task_of_every_queue_once(home: Path, worker: Worker, app: Celery) -> None:
    for number in range(300):
        send(app, number)

    eventually(lambda: len(notes(home)) >= 300 and not messages(home))
    worker.terminate()

    assert sorted(number for number, _ in notes(home)) == list(range(300))
    assert "Traceback" not in worker.log.read_text()
    assert f"transport:   folder://{home}/broker" in worker.log.read_text()


def test_ping_is_answered_and_leaves_no_reply_queue(home: Path, worker: Worker, app: Celery) -> None:
    answers: Any = eventually(lambda: app.control.inspect(timeout=2).ping())

    assert answers == {"one@here": {"ok": "pong"}}
    assert not list((home / "broker").glob("*/*reply*/*"))


def test_two_workers_both_hear_a_broadcast(home: Path, worker: Worker, app: Celery) -> None:
    other = Worker(home, "two")
    try:
        answers: Any = eventually(lambda: (found := app.control.ping(timeout=2)) and len(found) == 2 and found)
        assert sorted(name for answer in answers for name in answer) == ["one@here", "two@here"]
    finally:
        other.terminate()
    assert not list((home / "broker" / "queues").glob("two*"))


def test_events_reach_a_receiver_in_another_process(home: Path, worker: Worker, app: Celery) -> None:
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        with receiver.consumer_context() as (listening, _channel, _consumers):
            send(app, 1)
            eventually(lambda: listening.drain_events(timeout=3) or "task-succeeded" in seen)

    assert "task-received" in seen


def test_unfinished_task_is_back_in_the_folder_after_a_cold_stop(home: Path, worker: Worker, app: Celery) -> None:
    app.send_task("block", args=(1,), queue="q7", ignore_result=True)
    eventually((home / "blocked").exists)
    assert messages(home) == []

    worker.stop()

    assert [path.parent.name for path in messages(home)] == ["q7"]


def test_bad_file_does_not_stop_the_worker(home: Path, worker: Worker, app: Celery) -> None:
    (home / "broker" / "queues" / "q3" / "0.json").write_text("{")

    send(app, 3)

    eventually(lambda: [number for number, _ in notes(home)] == [3])
    assert [path.name for path in (home / "broker" / "bad").iterdir()] == ["0.json"]
    assert worker.process.poll() is None


def test_idle_cost_and_latency(home: Path, worker: Worker, app: Celery) -> None:
    """Printed, not asserted, except that every message arrives."""
    parent = psutil.Process(worker.process.pid)
    before, since_s = parent.cpu_times(), time.monotonic()
    eventually(lambda: time.monotonic() > since_s + 5)
    after = parent.cpu_times()
    idle = (after.user + after.system - before.user - before.system) / (time.monotonic() - since_s)

    for number in range(40):
        send(app, number)
        eventually(lambda number=number: len(notes(home)) == number + 1, every_s=0.07)

    latency = sorted(seconds * 1000 for _, seconds in notes(home))
    print(f"idle {idle:.1%} of a core; p50 {statistics.median(latency):.0f} ms, max {latency[-1]:.0f} ms")
