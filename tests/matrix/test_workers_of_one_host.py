"""Several workers on one host, by hand and under `celery multi`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.ledgers import Load
from tests.celery.workers import ROOT, is_alive
from tests.waiting import eventually

SHARDS = 8
NODES = ("one", "two")


@pytest.mark.parametrize("broker", ["amqp", "folder"])
def test_two_workers_share_the_load_and_each_message_is_handled_once(new_bank: OpenBank, broker: str) -> None:
    bank = new_bank(broker, entity_shards_per_group=SHARDS)
    workers = [bank.start_worker(), bank.start_worker()]
    for worker in workers:
        worker.await_ready()
    started = [bank.Journal.ref(f"held{number}").hold.send("me", number, f"hold{number}") for number in range(4)]

    # Each has two slots, so four turns at once need both.
    eventually(lambda: [bank.mark(f"hold{number}.started") for number in range(4)])
    for number in range(4):
        bank.allow(f"hold{number}")
    with Load(bank, senders=2, messages=60, journals=6) as load:
        pass

    load.assert_each_applied_once_in_order()
    ran_in = {message.result(timeout_s=30) for message in started}
    assert all(ran_in & set(worker.pool_pids()) for worker in workers)


class Multi:
    """`celery multi` with two nodes, whose files lie in the bank's folder."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self.names = [f"{name}@{bank.folder.name}-{os.getpid()}" for name in NODES]

    def __call__(self, command: str) -> None:
        folder = self._bank.folder
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "tests.celery.apps.bank", "multi", command, *self.names]
            + ["-c2", "-l", "INFO", f"--pidfile={folder}/%n.pid", f"--logfile={folder}/%n%I.log"],
            cwd=folder,
            env={**os.environ, **self._bank.environment(), "PYTHONPATH": paths, "C_FORCE_ROOT": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def pids(self) -> list[int]:
        """The workers that have written where they are."""
        files = [self._bank.folder / f"{name}.pid" for name in NODES]
        return [int(file.read_text()) for file in files if file.exists()]

    def await_ready(self) -> list[int]:
        logs = [Path(self._bank.folder / f"{name}.log") for name in NODES]
        eventually(lambda: all(" ready." in log.read_text() for log in logs), timeout_s=60)
        return self.pids()


@pytest.fixture
def multi(new_bank: OpenBank) -> Iterator[tuple[Bank, Multi]]:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    nodes = Multi(bank)
    yield bank, nodes
    for pid in nodes.pids():
        if is_alive(pid):
            os.kill(pid, 9)


def test_celery_multi_starts_restarts_and_stops_workers_that_host_entities(multi: tuple[Bank, Multi]) -> None:
    bank, nodes = multi
    nodes("start")
    first = nodes.await_ready()

    with Load(bank, senders=2, messages=60, journals=6) as load:
        load.await_handled(10)
        nodes("restart")
    load.assert_each_applied_once_in_order()
    eventually(lambda: len(nodes.pids()) == len(NODES) and not set(nodes.pids()) & set(first))
    second = nodes.pids()
    nodes("stopwait")

    eventually(lambda: not any(map(is_alive, [*first, *second])))
    assert bank.pending() == 0
