"""A stage: workers and clients on one store and one broker, under load until the curtain; and the verdict."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.celery.workers import ROOT, Worker, is_alive
from tests.chaos.rates import Rates
from tests.chaos.servers import execute
from tests.history import Operation, read_history, violations
from tests.waiting import eventually

_LOOK_EVERY_S = 0.1


class Stage:
    """Starts processes and keeps an eye on them, as a supervisor would."""

    def __init__(self, folder: Path, conf: Mapping[str, Any], seed: int, module: str = "tests.chaos.app") -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.workers: list[Worker] = []
        self.clients: list[subprocess.Popen[bytes]] = []
        self.started: list[Worker] = []
        """All workers that there have been."""
        self._seed = seed
        self._conf = dict(conf)
        self._module = module
        self._started = 0
        self._slots, self._pool = 2, "prefork"
        folder.mkdir(exist_ok=True)

    # Processes

    def environment(self, **conf: Any) -> dict[str, str]:
        return {"CHAOS_CONFIG": json.dumps({**self._conf, **conf}), "C_FORCE_ROOT": "1"}

    def open(self, *, workers: int = 2, clients: int = 4, slots: int = 2, pool: str = "prefork") -> Stage:
        """Start everything and wait until the clients hear answers."""
        self._slots, self._pool = slots, pool
        self.workers = [self.start_worker() for _ in range(workers)]
        for worker in self.workers:
            worker.await_ready()
        self.clients = [self.start_client() for _ in range(clients)]
        if clients:
            self.await_answers(30)
        return self

    def start_worker(self, *more: str, pool: str | None = None, slots: int | None = None, **conf: Any) -> Worker:
        """Start a worker and do not wait for it; `conf` are settings of its own."""
        self._started += 1
        pool, slots = pool or self._pool, slots or self._slots
        options = ["-P", pool, "-l", "INFO", *([] if pool == "solo" else ["-c", str(slots)]), *more]
        name, environment = f"w{self._started}", self.environment(**conf)
        worker = Worker(name, self.folder, *options, module=self._module, environment=environment)
        self.started.append(worker)
        return worker

    def start_client(self) -> subprocess.Popen[bytes]:
        self._started += 1
        name = f"c{self._started}"
        paths = [str(ROOT), *filter(None, sys.path)]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.client", name, str(self.folder), str(self._seed)],
                cwd=self.folder,
                env={**os.environ, **self.environment(), "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def replace_the_dead(self) -> None:
        """Start a worker and a client for each one that has ended."""
        for index, worker in enumerate(self.workers):
            if worker.process.poll() is not None:
                worker.end()
                self.workers[index] = self.start_worker()
        for index, client in enumerate(self.clients):
            if client.poll() is not None:
                self.clients[index] = self.start_client()

    def end_sessions(self, url: str, share: float) -> int:
        """End each session of this database with a probability; how many."""
        found = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        chosen = [int(str(pid)) for (pid,) in execute(url, found) if self.random.random() < share]
        execute(url, *(f"SELECT pg_terminate_backend({pid})" for pid in chosen))
        return len(chosen)

    # The load

    def play(self, for_s: float) -> None:
        """Let the load go on for a while: faults are scheduled by time, not by what comes of them."""
        time.sleep(for_s)

    def await_answers(self, more: int, *, within_s: float = 60) -> None:
        """Wait until the clients have heard so many more answers."""
        goal = self._answers() + more
        eventually(lambda: self._answers() >= goal, timeout_s=within_s, every_s=_LOOK_EVERY_S)

    def rates(self) -> Rates:
        return Rates(self.history())

    def history(self) -> list[Operation]:
        return read_history(self.folder.glob("*.history"))

    def _answers(self) -> int:
        return sum(file.read_bytes().count(b'"answer": ') for file in self.folder.glob("*.history"))

    # The end

    def verdict(self, entities: Any, *, within_s: float = 60) -> list[Operation]:
        """Stop the clients, wait until all mail is handled, and hold the lists against the history."""
        (self.folder / "stop").touch()
        for client in self.clients:
            code = client.wait(90)
            assert code == 0, self.client_logs()
        eventually(lambda: not entities.messages(limit=1), timeout_s=within_s, every_s=_LOOK_EVERY_S)
        history = self.history()
        found = violations(history, self.lists(entities))
        assert found == [], "\n".join(found[:20])
        refused = [operation.error for operation in history if operation.outcome == "failed"]
        assert refused == [], "no fault is any handler's own, so none may fail"
        return history

    def lists(self, entities: Any) -> dict[str, list[str]]:
        """What every ledger of the clients keeps."""
        states = entities.store.states("Ledger", None, 100_000)
        return {address.id: json.loads(stored.state)["entries"] for address, stored in states if "-" in address.id}

    def client_logs(self) -> str:
        return "\n".join(file.read_text()[-2_000:] for file in self.folder.glob("c*.log"))

    def close(self) -> None:
        """Nothing outlives the test."""
        for client in self.clients:
            client.kill()
            client.wait()
        for worker in self.started:
            worker.end()

    # Who is there to be hit

    def pool_pid(self) -> int | None:
        return self._one_of([pid for worker in self.workers for pid in worker.pool_pids()])

    def runner_pid(self) -> int | None:
        return self._one_of([pid for worker in self.workers for pid in worker.runner_pids()])

    def parent_pid(self) -> int | None:
        return self._one_of([worker.pid for worker in self.workers if is_alive(worker.pid)])

    def client_pid(self) -> int | None:
        return self._one_of([client.pid for client in self.clients if psutil.pid_exists(client.pid)])

    def _one_of(self, pids: list[int]) -> int | None:
        return self.random.choice(pids) if pids else None
