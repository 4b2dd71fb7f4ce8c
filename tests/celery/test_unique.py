"""Keys as mutexes with real workers, killed while a message holds its key: no lock is stuck, no send is lost."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

from entitycelery.exceptions import AlreadyProcessing
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.waiting import eventually

pytestmark = pytest.mark.chaos

GENEROUS_S = 20.0
# Longer than a busy machine keeps a sender from its next send.
BURST_S = 3.0


def held(bank: Bank, name: str = "held", **options: Any) -> Any:
    """The call of a turn that waits for its mark, with a key that is a mutex."""
    return bank.Journal.ref(name).hold.options(**{"key": "k", "unique": "reject", **options})


def running(bank: Bank, name: str) -> int:
    """The process in which the turn runs that has left this mark."""
    return int(eventually(lambda: bank.mark(f"{name}.started")))


@pytest.mark.parametrize(("broker", "store"), [("redis", "postgresql"), ("folder", "sqlite")])
def test_a_worker_that_is_killed_leaves_no_lock_behind(new_bank: OpenBank, broker: str, store: str) -> None:
    bank = new_bank(broker, store=store, entity_shards_per_group=4)
    workers = [bank.worker(slots=1), bank.worker(slots=1)]
    first = held(bank).send("me", 1, "held")
    pid = running(bank, "held")
    victim = next(worker for worker in workers if pid in worker.pool_pids())

    victim.kill_tree()

    # The message is pending, so it holds its key; nobody has to clear anything up.
    with pytest.raises(AlreadyProcessing) as told:
        held(bank).send("me", 2, "held")
    assert told.value.message_id == first.id
    bank.allow("held")
    assert first.result(timeout_s=GENEROUS_S) != pid
    assert held(bank).send("me", 3, "held").result(timeout_s=GENEROUS_S)
    assert bank.Journal.ref("held").of("me") == [1, 3]


def test_what_queues_up_behind_a_turn_whose_worker_is_killed_runs_behind_it_once(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=4)
    workers = [bank.worker(slots=1), bank.worker(slots=1)]
    queued = held(bank, unique="queue")
    first = queued.send("me", 1, "held")
    pid = running(bank, "held")

    waiting = [queued.send("me", number, "held") for number in (2, 3)]
    next(worker for worker in workers if pid in worker.pool_pids()).kill_tree()
    waiting.append(queued.send("me", 4, "held"))
    bank.allow("held")

    assert len({one.id for one in [first, *waiting]}) == 2
    assert waiting[-1].result(timeout_s=GENEROUS_S)
    assert bank.Journal.ref("held").of("me") == [1, 4]


def test_a_running_turn_is_dropped_for_the_newest_arguments(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=4)
    bank.worker()
    replaced = held(bank, unique="replace")
    first = replaced.send("me", 1, "old")
    running(bank, "old")

    assert replaced.send("me", 2, "new").id == first.id
    bank.allow("new")
    bank.allow("old")

    assert first.result(timeout_s=GENEROUS_S)
    assert bank.Journal.ref("held").of("me") == [2]


@pytest.mark.parametrize("store", ["postgresql", "sqlite"])
def test_a_burst_is_handled_once_and_not_before_it_is_over(new_bank: OpenBank, store: str) -> None:
    bank = new_bank("redis", store=store, entity_shards_per_group=4)
    bank.worker()
    debounced = bank.Journal.ref("burst").stamp.options(key="k", unique="debounce", delay_s=BURST_S)

    sent = []
    for number in range(6):
        last_s = time.time()
        sent.append(debounced.send(number))
        threading.Event().wait(0.1)

    assert sent[-1].result(timeout_s=GENEROUS_S) >= last_s + BURST_S
    assert len({one.id for one in sent}) == 1
    assert bank.Journal.ref("burst").of("stamp") == [5]


@pytest.mark.parametrize(
    ("store", "rule"),
    [("postgresql", "reject"), ("postgresql", "replace"), ("postgresql", "queue"), ("postgresql", "debounce")]
    + [("sqlite", "reject"), ("sqlite", "queue")],
)
def test_a_kill_under_a_stream_of_sends_loses_and_doubles_nothing(new_bank: OpenBank, store: str, rule: str) -> None:
    bank = new_bank("redis", store=store, entity_shards_per_group=4)
    workers = [bank.worker(), bank.worker()]
    call = bank.Journal.ref("busy").write_alone.options(
        key="k", unique=rule, delay_s=0.05 if rule == "debounce" else None
    )
    answered: dict[str, list[int]] = {}
    stop = threading.Event()
    mutex = threading.Lock()
    numbers = itertools.count()

    def send() -> None:
        while not stop.is_set():
            number = next(numbers)
            try:
                message_id = call.send("me", number).id
            except AlreadyProcessing:
                continue
            with mutex:
                answered.setdefault(message_id, []).append(number)
            # Between two sends there is time for a turn, or `replace` would never let one end.
            stop.wait(0.06)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    entries = lambda: bank.Journal.ref("busy").of("me")  # noqa: E731
    eventually(lambda: len(entries()) >= 5)
    workers[0].kill_tree()
    before = len(entries())
    eventually(lambda: len(entries()) >= before + 5)
    stop.set()
    for thread in threads:
        thread.join(30)
    eventually(lambda: bank.pending() == 0)

    # One turn for each message, with the arguments of one of those who were told its id.
    results = {message_id: bank.entities.client.result(message_id, GENEROUS_S) for message_id in answered}
    assert sorted(map(int, results.values())) == sorted(entries())
    assert all(int(result) in answered[message_id] for message_id, result in results.items())
    # The last send of all is seen, by its own turn or by that of the message that it joined.
    if rule != "reject":
        assert max(entries()) >= max(min(of_one) for of_one in answered.values())
    assert not (bank.folder / "busy.not-alone").exists()
