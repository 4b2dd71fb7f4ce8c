"""Celery's remote control: what a worker hosts, and taking it out of and into the assignment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import ROOT, Worker
from tests.waiting import eventually

SHARDS = 64


def hosted(bank: Bank) -> dict[str, Any]:
    """What every worker of the bank says that it hosts, by node."""
    nodes = [worker.node for worker in bank.workers]
    replies = bank.app.control.broadcast("entities", destination=nodes, reply=True, timeout=5, limit=len(nodes))
    return {node: said for reply in replies for node, said in reply.items()}


def shares(bank: Bank) -> Counter[str]:
    return Counter({node: len(said["shards"]) for node, said in hosted(bank).items() if said["shards"]})


def tell(bank: Bank, command: str, worker: Worker) -> list[Any]:
    return list(bank.app.control.broadcast(command, destination=[worker.node], reply=True, timeout=5, limit=1))


def test_a_drained_worker_hosts_nothing_until_it_is_resumed(new_bank: OpenBank) -> None:
    bank = new_bank("redis")
    one, two = bank.worker(), bank.worker()
    half = {one.node: SHARDS // 2, two.node: SHARDS // 2}
    eventually(lambda: shares(bank) == half)

    assert tell(bank, "entity_drain", one) == [{one.node: {"ok": "takes no shards"}}]
    eventually(lambda: shares(bank) == {two.node: SHARDS})
    assert hosted(bank)[one.node]["drained"]
    assert bank.Account.ref("alice").deposit.ask(5) == 5

    tell(bank, "entity_resume", one)
    eventually(lambda: shares(bank) == half)
    assert bank.Account.ref("alice").deposit.ask(5) == 10


def test_a_drained_worker_ends_in_order(new_bank: OpenBank) -> None:
    bank = new_bank("amqp")
    worker = bank.worker()
    eventually(lambda: shares(bank) == {worker.node: SHARDS})

    tell(bank, "entity_drain", worker)
    eventually(lambda: not shares(bank))

    assert worker.stop() == 0
    assert bank.entities.runners() == []


def test_released_shards_are_shared_out_anew(new_bank: OpenBank) -> None:
    bank = new_bank("amqp")
    one, two = bank.worker(), bank.worker()
    half = {one.node: SHARDS // 2, two.node: SHARDS // 2}
    eventually(lambda: shares(bank) == half)
    before = {runner.address: runner.instance for runner in bank.entities.runners()}

    tell(bank, "entity_release_shards", one)

    eventually(lambda: before[one.node] not in {runner.instance for runner in bank.entities.runners()})
    eventually(lambda: shares(bank) == half)
    after = {runner.address: runner.instance for runner in bank.entities.runners()}
    assert after[two.node] == before[two.node]


def test_celerys_command_line_knows_the_commands(new_bank: OpenBank) -> None:
    bank = new_bank("redis")
    worker = bank.worker()

    def celery(*arguments: str) -> str:
        command = [sys.executable, "-m", "celery", "-A", "tests.celery.apps.bank", *arguments]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **bank.environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return ended.stdout

    eventually(lambda: shares(bank) == {worker.node: SHARDS})
    assert '"default.0"' in celery("inspect", "entities", "-d", worker.node)
    assert "not meant: another@host is" in celery("control", "-d", worker.node, "entity_drain", "another@host")
    assert shares(bank) == {worker.node: SHARDS}
