"""A worker's log: every record of a turn says which, in Celery's own format or as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.celery.conftest import OpenBank
from tests.celery.workers import Worker
from tests.waiting import eventually

SHARDS = 4


def documents(worker: Worker) -> list[dict[str, Any]]:
    """The JSON lines of a log: all of it from when entities start."""
    return [json.loads(line) for line in worker.log().splitlines() if line.startswith("{")]


def said(worker: Worker, text: str) -> dict[str, Any]:
    return eventually(lambda: next(line for line in documents(worker) if line["message"] == text))


@pytest.mark.parametrize(
    ("pool", "options"),
    [("prefork", []), ("prefork", ["--pool-start-method", "spawn"]), ("threads", []), ("solo", [])],
    ids=["prefork", "spawn", "threads", "solo"],
)
def test_json_log_names_the_turn_in_the_users_own_records(new_bank: OpenBank, pool: str, options: list[str]) -> None:
    bank = new_bank("folder", entity_shards_per_group=SHARDS, entity_log_format="json")
    worker = bank.worker(*options, pool=pool)

    sent = bank.Journal.ref("j").say.send("from a turn")
    sent_async = bank.Journal.ref("k").say_asynchronously.send("from an async turn")
    sent_async.result(timeout_s=30)

    line = said(worker, "from a turn")
    assert (line["logger"], line["level"], line["table"]) == ("bank", "WARNING", 4)
    assert (line["entity_address"], line["message_id"], line["shard"]) == ("Journal/j", sent.id, "of pizza")
    line = said(worker, "from an async turn")
    assert (line["entity_address"], line["message_id"]) == ("Journal/k", sent_async.id)
    assert line["shard"].startswith("default.")


def test_json_log_has_a_failed_turn_on_one_line(new_bank: OpenBank) -> None:
    bank = new_bank("folder", entity_shards_per_group=SHARDS, entity_log_format="json")
    worker = bank.worker()

    sent = bank.Account.ref("poor").transfer.send(5, "rich")

    line = eventually(lambda: next(line for line in documents(worker) if line.get("message_id") == sent.id))
    assert line["level"] == "ERROR"
    assert "InsufficientFunds" in line["message"]
    assert "Traceback" in line["message"]


def test_log_keeps_celerys_format_by_default(new_bank: OpenBank) -> None:
    bank = new_bank("folder", entity_shards_per_group=SHARDS)
    worker = bank.worker()

    bank.Journal.ref("j").say.ask("plain text")

    assert eventually(lambda: next(line for line in worker.log().splitlines() if line.endswith("] plain text")))
    assert documents(worker) == []
