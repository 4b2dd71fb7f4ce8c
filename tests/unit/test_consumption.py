"""A worker consumes exactly what its runner process said last, on whatever broker connection there is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Consumer

from entitycelery.address import ShardId, queue_name
from entitycelery.settings import Settings
from entitycelery.transports.broker import shard_queue
from entitycelery.worker.consumption import Consumption
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.drain_task import Dispatcher
from entitycelery.worker.link import RunnerEnd, pair
from tests.waiting import eventually

CLUSTER = "consumption"
SHARDS = [ShardId("default", number) for number in range(4)]
SETTINGS = Settings(cluster=CLUSTER, shards_per_group=4, refresh_interval_s=0.2, lease_timeout_s=2.0)
LONG_S = 60.0


class Part:
    """The part of a worker that follows its runner process: kombu's own consumer, a pool that only takes notes."""

    def __init__(self) -> None:
        self.asked: list[DrainRequest] = []
        self.later: list[Callable[[], object]] = []
        self.dispatcher = Dispatcher(known=SHARDS, slots=lambda: 4, may_end_process=False)
        self.dispatcher.connect(self.asked.append, self.later.append, ends_in_slot=False)
        self.consumption = Consumption(self.dispatcher, SETTINGS)
        self._closers: list[Callable[[], object]] = []
        self.restart_runner()

    def restart_runner(self) -> None:
        worker, self._theirs = pair()
        self.runner = RunnerEnd(self._theirs)
        self._closers += [worker.close, self._theirs.close]
        self.consumption.follow(worker)

    def end_runner(self) -> None:
        self._theirs.close()

    def connect_broker(self) -> Consumer:
        """Another broker connection, as after a loss of the one before; the memory transport keeps its queues."""
        connection = Connection("memory://")
        self._closers.append(connection.release)
        self.queues = Consumer(connection.default_channel, [])
        self.queues.consume()
        self.consumption.connect(SimpleNamespace(task_consumer=self.queues), self.later.append)
        return self.queues

    def look(self) -> None:
        """Read what the runner process said, and let the loop do what was put off."""
        self.consumption.look()
        while self.later:
            self.later.pop(0)()

    def told(self, shards: list[ShardId], for_s: float = LONG_S) -> int:
        number = self.runner.consume(shards, for_s)
        self.look()
        return number

    def consumed(self) -> set[str]:
        return {name for name in (queue_name(CLUSTER, shard) for shard in SHARDS) if self.queues.consuming_from(name)}

    def hosted(self) -> list[ShardId]:
        return [shard for shard in SHARDS if self.dispatcher.hosts(shard)]

    def woken(self) -> set[ShardId]:
        """The shards of all drains that were asked for since the last look here."""
        asked, self.asked[:] = list(self.asked), []
        return {shard for request in asked for shard in request.shards}

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


@pytest.fixture
def part() -> Iterator[Part]:
    made = Part()
    made.connect_broker()
    yield made
    made.close()


def queues_of(*numbers: int) -> set[str]:
    return {queue_name(CLUSTER, SHARDS[number]) for number in numbers}


def test_nothing_is_consumed_until_the_runner_process_says_so(part: Part) -> None:
    part.look()

    assert part.consumed() == set()
    assert part.hosted() == []


def test_queues_are_added_and_cancelled_on_the_consumer_that_is_there(part: Part) -> None:
    consumer = part.queues

    part.told(SHARDS[:2])
    assert part.consumed() == queues_of(0, 1)
    part.told(SHARDS[1:3])

    assert part.consumed() == queues_of(1, 2)
    assert part.hosted() == SHARDS[1:3]
    assert part.queues is consumer


def test_only_the_last_of_several_lists_counts(part: Part) -> None:
    part.runner.consume(SHARDS, LONG_S)
    part.told(SHARDS[3:])

    assert part.consumed() == queues_of(3)


def test_new_shards_are_woken_since_their_last_holder_may_have_taken_the_wakeup(part: Part) -> None:
    part.told(SHARDS[:2])
    assert part.woken() == set(SHARDS[:2])

    part.told(SHARDS[:3])

    assert part.woken() == {SHARDS[2]}


def test_a_wakeup_for_a_shard_that_went_elsewhere_is_nothing(part: Part) -> None:
    part.told(SHARDS[:1])
    part.woken()

    part.runner.wake(SHARDS[:2])
    part.look()

    assert part.woken() == {SHARDS[0]}


def test_a_list_is_good_for_its_time_only(part: Part, caplog: pytest.LogCaptureFixture) -> None:
    part.told(SHARDS, for_s=0.05)
    assert part.consumed() == queues_of(0, 1, 2, 3)

    def given_up() -> bool:
        part.look()
        return not part.consumed() and not part.hosted()

    eventually(given_up, timeout_s=5)
    assert "has said nothing in time" in caplog.text


def test_a_repeated_list_extends_the_time(part: Part) -> None:
    part.told(SHARDS, for_s=0.05)

    part.told(SHARDS, for_s=LONG_S)
    part.look()

    assert part.consumed() == queues_of(0, 1, 2, 3)


def test_a_worker_that_was_frozen_follows_no_list_from_before(part: Part) -> None:
    # Written before, read long after it has run out.
    part.runner.consume(SHARDS, 0.0)
    part.look()

    assert part.consumed() == set()
    assert part.hosted() == []
    assert part.woken() == set()


def test_nothing_is_consumed_from_the_moment_on_when_the_runner_process_has_ended(part: Part) -> None:
    part.told(SHARDS)

    part.end_runner()
    part.look()

    assert (part.consumed(), part.hosted()) == (set(), [])


def test_another_runner_process_begins_with_nothing(part: Part) -> None:
    part.told(SHARDS)

    part.restart_runner()
    part.look()
    assert (part.consumed(), part.hosted()) == (set(), [])
    part.told(SHARDS[:1])

    assert part.consumed() == queues_of(0)


def test_another_broker_connection_has_the_same_queues(part: Part) -> None:
    part.told(SHARDS[:2])

    part.consumption.disconnect()
    part.told(SHARDS[1:3])
    part.connect_broker()
    part.look()

    assert part.consumed() == queues_of(1, 2)


def test_drains_and_wakeups_go_on_without_a_broker(part: Part) -> None:
    part.told(SHARDS[:1])
    part.woken()
    part.consumption.disconnect()

    part.runner.wake(SHARDS[:1])
    part.look()

    assert part.woken() == {SHARDS[0]}


class Ear:
    """What the runner process hears."""

    def __init__(self, part: Part) -> None:
        self._part = part
        threading.Thread(target=part.runner.listen, daemon=True).start()

    def heard(self) -> Any:
        found = self._part.runner.heard
        assert found is not None
        return found


def test_a_worker_says_which_list_it_has_carried_out_only_when_it_has(part: Part) -> None:
    ear = Ear(part)
    number = part.runner.consume(SHARDS, LONG_S)

    part.consumption.look()
    # The loop has not come to it yet: queues are consumed still, or not yet.
    eventually(lambda: ear.heard() and ear.heard().done < number)
    part.look()

    eventually(lambda: ear.heard().done == number)


def test_every_list_is_answered_so_that_silence_means_trouble(part: Part) -> None:
    ear = Ear(part)
    part.told(SHARDS)
    first_s = eventually(lambda: ear.heard().at_s)

    part.told(SHARDS)

    eventually(lambda: ear.heard().at_s > first_s)


def test_busy_shards_are_those_that_drains_work_on_though_they_have_left_the_list(part: Part) -> None:
    ear = Ear(part)
    part.told(SHARDS[:1])
    [drain] = part.asked

    drain.on_accepted(1, 0.0)
    part.look()
    assert eventually(ear.heard).busy == set()
    part.told([])
    eventually(lambda: ear.heard().busy == {SHARDS[0]})
    drain.on_done((False, []))
    part.look()

    eventually(lambda: ear.heard().busy == set())


def test_a_worker_whose_drains_get_no_slot_is_starved(part: Part) -> None:
    ear = Ear(part)
    part.told(SHARDS[:1])
    assert not eventually(ear.heard).starved

    for request in part.asked:
        request.asked_s -= SETTINGS.starved_after_s + 1
    part.look()

    eventually(lambda: ear.heard().starved)


def test_a_worker_without_a_broker_is_starved_until_it_has_one(part: Part) -> None:
    ear = Ear(part)
    part.told(SHARDS[:1])
    assert not eventually(ear.heard).starved

    part.consumption.disconnect()
    eventually(lambda: ear.heard().starved)
    part.connect_broker()

    eventually(lambda: not ear.heard().starved)


def test_a_worker_that_ends_without_a_broker_hands_over_when_it_is_told_to(part: Part) -> None:
    ear = Ear(part)
    part.told(SHARDS[:1])
    before_s = eventually(ear.heard).at_s

    part.consumption.leave(tell=False)
    part.consumption.disconnect()
    part.look()
    part.told(SHARDS[:1])

    assert eventually(lambda: ear.heard() if ear.heard().at_s > before_s else None).leaving is False
    assert part.consumption.leave().leaving


def test_a_leaving_worker_takes_nothing_more_and_has_given_up_all(part: Part) -> None:
    part.told(SHARDS)

    status = part.consumption.leave()
    assert (status.leaving, status.done, part.hosted()) == (True, 1, [])
    part.told(SHARDS)

    assert part.hosted() == []


def test_operators_drain_and_release(part: Part) -> None:
    ear = Ear(part)

    part.consumption.drain(True)
    part.consumption.release()

    eventually(lambda: (ear.heard().drained, ear.heard().releases) == (True, 1))
    assert part.consumption.described()["drained"]


def test_a_heap_of_stale_wakeups_is_thrown_away_when_its_queue_is_consumed(part: Part) -> None:
    queue = shard_queue(CLUSTER, SHARDS[0], SETTINGS.wakeup_expires_s)
    with Connection("memory://") as connection:
        producer = connection.Producer()
        for _ in range(20):
            producer.publish({}, routing_key=queue.name, declare=[queue], retry=False)

        part.told(SHARDS[:1])

        assert queue(connection.default_channel).queue_declare(passive=True).message_count == 0
