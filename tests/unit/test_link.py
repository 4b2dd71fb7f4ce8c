"""The line between a worker and its runner process: whole messages, in order, and neither end ever waits."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from entitycelery.address import ShardId
from entitycelery.sharding.keeper import Heard
from entitycelery.worker.link import Consume, RunnerEnd, Status, Wake, WorkerEnd, now_s, pair
from tests.waiting import eventually

SHARDS = [ShardId("default", number) for number in range(3)]
IDLE = Status(done=0, busy=[], starved=False, leaving=False)
# More than a socket's buffers hold, so that most of it has to wait.
MANY = [ShardId("a-group-with-a-long-name" * 4, number) for number in range(200)]


class Line:
    """Both ends in one process; the runner's end listens in a thread, as it does there."""

    def __init__(self) -> None:
        self.worker, self._theirs = pair()
        self.runner = RunnerEnd(self._theirs)
        self._listener = threading.Thread(target=self.runner.listen, daemon=True)

    def listen(self) -> None:
        self._listener.start()

    def heard(self) -> Heard:
        found = self.runner.heard
        assert found is not None
        return found

    def close(self) -> None:
        self.worker.close()
        if self._listener.ident is not None:
            self._listener.join(10)
        self._theirs.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def test_lists_of_shards_are_absolute_and_numbered(line: Line) -> None:
    began_s = now_s()
    assert line.runner.consume(SHARDS, 9.0) == 1
    assert line.runner.consume(SHARDS[:1], 8.0) == 2
    took_s = now_s() - began_s

    first, second = line.worker.read()

    assert isinstance(first, Consume)
    assert isinstance(second, Consume)
    assert [(first.number, first.shards), (second.number, second.shards)] == [(1, SHARDS), (2, SHARDS[:1])]
    # By the clock: time that passes before it is read counts.
    assert 9.0 <= first.until_s - began_s <= 9.0 + took_s
    assert line.worker.read() == []


def test_wakeups_need_no_broker(line: Line) -> None:
    line.runner.wake(SHARDS)
    line.runner.wake([])

    assert line.worker.read() == [Wake(SHARDS)]


def test_what_a_worker_says_is_heard_with_the_time_of_hearing(line: Line) -> None:
    line.listen()

    line.worker.say(Status(done=3, busy=SHARDS, starved=True, leaving=False, drained=True, releases=2))

    heard = eventually(line.heard)
    assert (heard.done, heard.busy, heard.starved, heard.leaving) == (3, frozenset(SHARDS), True, False)
    assert (heard.drained, heard.releases) == (True, 2)
    before_s = heard.at_s
    line.worker.say(IDLE)
    eventually(lambda: line.heard().at_s > before_s)


@pytest.mark.parametrize(
    "news",
    [
        Status(done=0, busy=[], starved=True, leaving=False),
        Status(done=0, busy=[], starved=False, leaving=True),
        Status(done=0, busy=[], starved=False, leaving=False, drained=True),
        Status(done=0, busy=[], starved=False, leaving=False, releases=1),
        Status(done=1, busy=[SHARDS[1]], starved=False, leaving=False),
    ],
    ids=["starved", "leaving", "drained", "released", "a drain has ended"],
)
def test_news_interrupt_the_keeper_until_they_are_settled(line: Line, news: Status) -> None:
    line.listen()
    line.worker.say(Status(done=0, busy=SHARDS[:2], starved=False, leaving=False))
    eventually(lambda: line.heard() and is_readable(line.runner.interrupt))
    line.runner.settle()

    line.worker.say(news)

    eventually(lambda: is_readable(line.runner.interrupt))
    line.runner.settle()
    assert not is_readable(line.runner.interrupt)


def test_what_is_no_news_interrupts_nobody(line: Line) -> None:
    line.listen()
    line.worker.say(IDLE)
    eventually(lambda: is_readable(line.runner.interrupt))
    line.runner.settle()

    line.worker.say(Status(done=1, busy=SHARDS[:1], starved=False, leaving=False))

    eventually(lambda: line.heard().done == 1)
    assert not is_readable(line.runner.interrupt)


def test_another_list_of_shards_is_told_of_until_that_is_settled(line: Line) -> None:
    line.runner.consume([], 9.0)
    assert not is_readable(line.runner.moved)

    line.runner.consume(SHARDS, 9.0)
    line.runner.consume(SHARDS[1:], 9.0)
    assert is_readable(line.runner.moved)
    line.runner.settle_moved()
    line.runner.settle_moved()

    line.runner.consume(SHARDS[1:], 9.0)
    assert not is_readable(line.runner.moved)


def test_a_runner_knows_that_its_worker_has_ended(line: Line) -> None:
    line.listen()
    assert not is_readable(line.runner.ended)

    line.worker.close()

    eventually(lambda: is_readable(line.runner.ended))


def test_a_worker_knows_that_its_runner_has_ended_and_has_read_all_before() -> None:
    worker, theirs = pair()
    RunnerEnd(theirs).wake(SHARDS)

    theirs.close()

    assert worker.read() == [Wake(SHARDS)]
    assert worker.has_ended
    assert worker.read() == []


def test_a_message_that_comes_in_pieces_is_read_whole() -> None:
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(ours)

    theirs.sendall(b'{"type":"wake","shards":[["def')
    first = worker.read()
    theirs.sendall(b'ault",1]]}\n{"type":"wake"')
    second = worker.read()

    assert first == []
    assert second == [Wake([ShardId("default", 1)])]
    theirs.close()


def test_a_runner_whose_worker_is_frozen_goes_on_and_the_worker_then_reads_whole_messages(line: Line) -> None:
    numbers = [line.runner.consume(MANY, 1.0) for _ in range(100)]

    read: list[Consume] = []
    # What did not fit goes with the next one.
    while not any(message.shards == SHARDS for message in read):
        line.runner.consume(SHARDS, 1.0)
        read += [message for message in line.worker.read() if isinstance(message, Consume)]

    assert numbers == list(range(1, 101))
    assert [message.number for message in read] == sorted({message.number for message in read})
    assert all(message.shards == MANY for message in read if message.number <= 100)


def test_a_worker_whose_runner_is_frozen_goes_on(line: Line) -> None:
    for _ in range(200):
        line.worker.say(Status(done=0, busy=MANY, starved=False, leaving=False))

    line.listen()

    eventually(lambda: line.heard().busy == frozenset(MANY))


def test_speaking_to_somebody_who_has_ended_is_no_error() -> None:
    worker, theirs = pair()
    theirs.close()

    worker.say(IDLE)

    assert worker.read() == []
    assert worker.has_ended
