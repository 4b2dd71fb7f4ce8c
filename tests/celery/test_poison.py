"""Messages that end their process or never return: bounded, told, and no harm to anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from entitycelery.exceptions import Quarantined, ReplyTimeout, TurnTimeout
from tests.celery.banks import Bank, open_bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import is_alive
from tests.services import Services
from tests.waiting import eventually

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def bank(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """One shard, so that everything is in one batch; two crashes are enough."""
    folder = tmp_path_factory.mktemp("bank")
    with open_bank(services, folder, "redis", entity_shards_per_group=1, entity_max_crashes=2) as opened:
        opened.worker()
        yield opened


def test_message_that_kills_its_process_is_quarantined_and_harms_no_other(bank: Bank) -> None:
    poisoned, others = bank.Journal.ref("poisoned"), [bank.Journal.ref(f"other{number}") for number in range(3)]
    around: list[Any] = [poisoned.write.prepare("me", number) for number in range(5)]
    deadly = poisoned.die.prepare()
    behind: list[Any] = [poisoned.write.prepare("me", number) for number in range(5, 10)]
    beside: list[Any] = [journal.write.prepare("me", number) for number in range(5) for journal in others]

    sent = bank.entities.send_many([*around, *beside, deadly, *behind])

    with pytest.raises(Quarantined, match="ended the process that handled it 2 times"):
        sent[len(around) + len(beside)].result(timeout_s=60)
    assert sent[-1].result(timeout_s=60)
    eventually(lambda: bank.pending() == 0)
    assert bank.entities.state(poisoned).entries == [("me", number) for number in range(10)]
    for journal in others:
        assert bank.entities.state(journal).entries == [("me", number) for number in range(5)]
    assert not bank.entities.exists(bank.Journal.ref("witness"))


def test_turn_that_hangs_times_out_and_its_entity_goes_on(bank: Bank) -> None:
    journal = bank.Journal.ref("hanging")
    hung = journal.hang.send()
    behind = [journal.write.send("me", number) for number in range(3)]

    with pytest.raises(TurnTimeout, match=r"longer than 0\.5 s"):
        hung.result(timeout_s=30)

    assert behind[-1].result(timeout_s=30)
    assert bank.entities.state(journal).entries == [("me", number) for number in range(3)]


def test_pool_process_of_a_turn_that_hangs_is_ended_and_replaced(bank: Bank) -> None:
    (bank.folder / "hang.started").unlink(missing_ok=True)

    with pytest.raises(TurnTimeout):
        bank.Journal.ref("hanging").hang.ask()

    pid = int(bank.mark("hang.started"))
    eventually(lambda: not is_alive(pid))
    eventually(lambda: len(bank.workers[0].pool_pids()) == 2)
    assert bank.workers[0].process.poll() is None


def test_asynchronous_turn_that_hangs_is_cancelled_in_its_living_process(bank: Bank) -> None:
    journal = bank.Journal.ref("hanging-asynchronously")
    eventually(lambda: len(bank.workers[0].pool_pids()) == 2)
    before = bank.workers[0].pool_pids()

    with pytest.raises(TurnTimeout, match=r"longer than 0\.5 s"):
        journal.hang_asynchronously.ask()

    assert journal.write.ask("me", 1)
    assert bank.entities.state(journal).entries == [("me", 1)]
    assert bank.workers[0].pool_pids() == before


def test_turn_that_hangs_in_a_pool_of_threads_does_not_wedge_its_entity(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=1)
    worker = bank.worker(pool="threads")
    journal = bank.Journal.ref("hanging")
    hung = journal.hang.send()

    with pytest.raises(TurnTimeout):
        hung.result(timeout_s=30)

    assert journal.write.ask("me", 1) == worker.pid
    assert bank.entities.state(journal).entries == [("me", 1)]


def test_crash_of_one_worker_counts_when_another_takes_over(new_bank: OpenBank) -> None:
    bank = new_bank("folder", entity_shards_per_group=1, entity_max_crashes=1)
    worker = bank.worker(pool="solo")
    deadly = bank.Journal.ref("poisoned").die.send()
    eventually(lambda: not is_alive(worker.pid))

    with pytest.raises(ReplyTimeout):
        deadly.result(timeout_s=0.1)
    bank.worker(pool="solo")

    with pytest.raises(Quarantined):
        deadly.result(timeout_s=30)
    assert bank.Journal.ref("poisoned").write.ask("me", 1)
    assert bank.entities.state(bank.Journal.ref("poisoned")).entries == [("me", 1)]
