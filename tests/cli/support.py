"""The command line as a user meets it: an app in a folder, commands as processes, and one real worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from entitycelery.cli.group import entitycelery
from tests.waiting import eventually

COMMAND_TIMEOUT_S = 60

APP = """
from pathlib import Path

from celery import Celery

from entitycelery import Entity, EntityCelery, handler, query
from entitycelery.transports.folder import configure

app = Celery("{name}")
app.conf.update(configure(app.conf, Path("{folder}/broker")))
app.conf.update(entity_database_url="{database_url}", entity_cluster="{cluster}", worker_enable_remote_control=False)
entities = EntityCelery(app)


@entities.register(aliases=("Konto",))
class Account(Entity):
    balance: int = 0
    owner: str | None = None

    @handler
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @handler(name="give-name")
    def rename(self, owner: str) -> str:
        self.owner = owner
        return owner

    @handler
    def promise(self, after_s: float) -> None:
        self.remind("interest", self.deposit.prepare(1), after_s=after_s)

    @handler
    def forget(self) -> None:
        self.owner = None

    @handler
    def fail(self, why: str) -> None:
        raise ValueError(why)

    @query
    def statement(self) -> int:
        return self.balance


@entities.register
class Note(Entity):
    lines: list[str] = []

    @handler
    def add(self, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @handler(autoretry_for=(OSError,), max_retries=0)
    def copy(self, name: str) -> int:
        self.lines.append(Path("{folder}", name).read_text())
        return len(self.lines)
"""


WAITING = """

from entitycelery import Workflow


@entities.register
class Wish(Entity):
    balance: int = 0

    @handler
    def await_gift(self, timeout_s: float | None = None) -> str:
        return self.expect("gift", then=self.receive, timeout_s=timeout_s)

    @handler
    def receive(self, amount: int) -> int:
        self.balance += amount
        return self.balance


def greeting(name: str) -> str:
    return "hello " + name


@entities.workflow
def gift(flow: Workflow, name: str) -> int:
    flow.step(greeting, name)
    return flow.ask(Wish.ref(name).receive, flow.wait("amount", int))


def read(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def forget(name: str) -> None:
    return


@entities.workflow
def copy(flow: Workflow, name: str, undoes: bool = False) -> list[str]:
    greeted = flow.step(greeting, name)
    if undoes:
        flow.compensate(forget, name)
    flow.race(lambda: flow.sleep(60), lambda: flow.step(greeting, "race"))
    return [greeted, flow.step(read, name)]
"""
"""What is added to the app of those that wait."""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)

    @property
    def jsonl(self) -> list[Any]:
        """The JSON documents that it printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line on standard error, without the program's name."""
        [line] = self.err.strip().splitlines()
        return line.removeprefix("entitycelery: ")


@dataclass(frozen=True)
class Project:
    """A folder with an app of its own store, cluster and broker."""

    name: str
    folder: Path
    database_url: str

    def write(self, cluster: str, more: str = "") -> None:
        text = APP.format(name=self.name, folder=self.folder, database_url=self.database_url, cluster=cluster)
        (self.folder / f"{self.name}.py").write_text(text + more)

    def __call__(self, *words: str, stdin: bytes | None = None) -> Ran:
        """`entitycelery -A app words`, in this process: what a command says and how it ends."""
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            result = CliRunner().invoke(entitycelery, ["-A", self.name, *words], input=stdin, prog_name="entitycelery")
        finally:
            os.chdir(before)
            # Every command begins in a process of its own: it finds neither this one's folder nor its options.
            sys.path[:] = [path for path in sys.path if path != str(self.folder)]
            sys.modules.pop(self.name, None)
        return Ran(result.exit_code, result.stdout, result.stderr)

    def process(self, *command: str, stdin: int | None = subprocess.DEVNULL) -> Ran:
        """A command as a process of its own in the folder; stdin None: closed."""
        return run_process(command, self.folder, stdin=stdin)

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A real worker with its tree in a process group of its own, killed at the end."""
        log = self.folder / "worker.log"
        options = ["-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", self.name, "worker", *options],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            eventually(lambda: " ready." in log.read_text())
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def run_process(
    command: Sequence[str], folder: Path, *, stdin: int | None = subprocess.DEVNULL, **variables: str
) -> Ran:
    """Run a command; stdin None: closed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        preexec_fn=(lambda: os.close(0)) if stdin is None else None,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would configure an app, at the width of a small terminal."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENTITY_", "CELERY_"))}
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "COLUMNS": "80", "PYTHONWARNINGS": "default", **variables}


def script(name: str) -> str:
    """A console script beside this Python."""
    return str(Path(sys.executable).parent / name)
