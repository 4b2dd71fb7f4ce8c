"""Singletons as the store keeps them: one holder at a time, by locks that end with a session or rows that expire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from entitycelery.singleton import LoopSpec, Seat, StoredSingleton, Timing
from entitycelery.storage.sql.singleton_session import SqlSingletonSession
from entitycelery.storage.sql.store import SqlStore
from tests.storage.leases import Hosts
from tests.storage.support import change, opened, query
from tests.waiting import eventually

# Rows of a holder that is not looked at any more run out soon enough for a test, and not while one is looked at.
TIMING = Timing(0.5)
FEED = LoopSpec("feed", "default", "shop", "feed", 1.0, 60.0, 5.0)
OTHER = msgspec.structs.replace(FEED, name="other")


class Runner:
    """A runner's session for singletons, on a store of its own."""

    def __init__(self, store: SqlStore, session: SqlSingletonSession, worker: str) -> None:
        self.store = store
        self.session = session
        self.worker = worker
        self.held: dict[str, int] = {}
        session.begin([FEED, OTHER])

    def look(self, name: str = "feed") -> Seat:
        return self.session.look(["feed", "other"], self.held)[name]

    def has(self, name: str = "feed") -> bool:
        """Whether what it took is its own still."""
        seat = self.look(name)
        return not seat.is_free and (seat.holder, seat.epoch) == (self.worker, self.held.get(name))

    def take(self, name: str = "feed") -> Seat | None:
        """As it was before."""
        found = self.session.take(name)
        if found is None:
            return None
        seat, self.held[name] = found
        return seat

    def run(self, name: str = "feed", *, again: bool = False) -> int | None:
        fence = self.session.run(name, self.held[name], pid=4711, again=again)
        if fence is not None:
            self.held[name] = fence
        return fence

    def give(self, name: str = "feed") -> None:
        self.session.give(self.look(name), self.held.pop(name))

    def stored(self, name: str = "feed") -> StoredSingleton:
        [found] = [one for one in self.store.roster.all() if one.name == name]
        return found


class Runners:
    def __init__(self, url: str) -> None:
        self.url = url
        self.stack = ExitStack()
        self._sessions: dict[str, ExitStack] = {}

    def __call__(self, worker: str) -> Runner:
        own = self._sessions[worker] = self.stack.enter_context(ExitStack())
        store = own.enter_context(opened(self.url))
        return Runner(store, own.enter_context(store.roster.session(worker, f"{worker}@host", TIMING)), worker)

    def end(self, runner: Runner) -> None:
        """Its process is gone."""
        self._sessions[runner.worker].close()


@pytest.fixture
def runners(store_url: str) -> Iterator[Runners]:
    made = Runners(store_url)
    with made.stack:
        yield made


@pytest.fixture
def session_runners(postgres_url: str) -> Iterator[Runners]:
    """Runners whose locks are those of their sessions."""
    made = Runners(postgres_url)
    with made.stack:
        yield made


def test_one_of_two_has_it(runners: Runners) -> None:
    one, two = runners("one"), runners("two")

    before = one.take()

    assert before is not None
    assert (before.handed_over, before.epoch, before.holder) == (True, 0, None)
    assert two.take() is None
    assert one.has()
    seen = two.look()
    assert (seen.holder, seen.epoch, seen.is_free, seen.handed_over) == ("one", 1, False, False)
    assert seen.successor_waits_s == TIMING.successor_waits_s


def test_singletons_are_held_apart(runners: Runners) -> None:
    one, two = runners("one"), runners("two")

    assert one.take("feed") is not None
    assert two.take("other") is not None

    assert one.has("feed")
    assert two.has("other")
    assert one.take("other") is None


def test_it_is_free_once_its_holder_is_gone_and_was_not_handed_over(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()

    runners.end(one)
    eventually(lambda: two.look().is_free, timeout_s=TIMING.held_for_s + 2)
    before = two.take()

    assert before is not None
    assert (before.handed_over, before.holder) == (False, "one")
    assert two.has()


def test_it_is_kept_by_whoever_goes_on_looking(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()
    goes_on_until_s = time.monotonic() + 2 * TIMING.held_for_s

    def is_over() -> bool:
        kept.append(one.has() and not two.look().is_free)
        return time.monotonic() > goes_on_until_s

    kept: list[bool] = []
    eventually(is_over)
    assert all(kept)


def test_what_was_handed_over_is_free_at_once(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()
    one.give()

    assert two.look().is_free
    before = two.take()

    assert before is not None
    assert (before.handed_over, before.holder) == (True, None)
    assert two.has()
    assert one.take() is None


def test_every_take_and_every_start_draws_a_larger_number(runners: Runners) -> None:
    one, two = runners("one"), runners("two")

    one.take()
    drawn = [one.held["feed"], one.run(), one.run(again=True)]
    one.give()
    two.take()
    drawn += [two.held["feed"], two.run()]

    assert drawn == [1, 2, 3, 4, 5]


def test_a_holder_that_has_lost_it_starts_and_writes_nothing(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()
    runners.end(one)
    eventually(two.take, timeout_s=TIMING.held_for_s + 2)
    two.run()
    again = runners("one")
    again.held["feed"] = 1

    assert not again.has()
    assert again.run() is None
    again.session.end("feed", 1, "as the test wants it")
    again.session.give(again.look(), 1)

    assert two.has()
    assert two.stored().pid == 4711
    assert two.stored().last_failure is None


def test_a_session_that_takes_twice_gives_once(session_runners: Runners) -> None:
    one, two = session_runners("one"), session_runners("two")
    one.take()
    assert one.take() is not None

    one.give()

    assert two.take() is not None


def test_a_new_session_of_a_worker_ends_the_one_before(session_runners: Runners) -> None:
    before = session_runners("one")
    before.take()
    other = session_runners("two")

    session_runners("one")

    assert eventually(other.take) is not None


def test_a_runner_that_is_evicted_holds_no_singleton(session_runners: Runners, session_hosts: Hosts) -> None:
    one, two = session_runners("one"), session_runners("two")
    host, silent = session_hosts("alive"), session_hosts("silent", worker="one")
    one.take()

    assert host.session.remove(silent.me)

    assert eventually(two.take) is not None


def test_a_row_that_was_deleted_is_there_again_with_the_next_session(runners: Runners) -> None:
    one = runners("one")
    change(one.store, "DELETE FROM {singleton}")
    assert one.session.look(["feed"], {}) == {}

    assert runners("two").take() is not None


# What is written about it


def test_what_a_holder_does_is_written_down(runners: Runners) -> None:
    one = runners("one")
    one.take()
    fence = one.run()
    stored = one.stored()

    assert (stored.holder, stored.address, stored.epoch, stored.pid) == ("one", "one@host", fence, 4711)
    assert stored.since is not None
    assert stored.started_at is not None
    assert stored.heartbeat_age_s is not None
    assert stored.heartbeat_age_s < 5
    assert (stored.shard_group, stored.heartbeat_interval_s) == ("default", 5.0)
    assert (stored.restarts, stored.last_failure) == (0, None)


def test_a_failure_is_kept_and_restarts_are_counted(runners: Runners) -> None:
    one = runners("one")
    one.take()
    one.run()

    one.session.end("feed", one.held["feed"], "ValueError: 5 %")
    failed = one.stored()
    one.run(again=True)
    one.session.end("feed", one.held["feed"], None)

    assert (failed.pid, failed.last_failure) == (None, "ValueError: 5 %")
    assert failed.last_failure_at is not None
    assert (one.stored().restarts, one.stored().last_failure, one.stored().pid) == (1, "ValueError: 5 %", None)


def test_a_heartbeat_is_written_by_the_process_that_runs_it_alone(runners: Runners) -> None:
    one = runners("one")
    one.take()
    fence = one.run()
    assert fence is not None
    past = "heartbeat_at - 60" if one.store.dialect.name == "sqlite" else "heartbeat_at - interval '60 seconds'"
    change(one.store, f"UPDATE {{singleton}} SET heartbeat_at = {past}")  # noqa: S608 - constants

    assert not one.store.roster.beat("feed", fence - 1)
    assert (one.stored().heartbeat_age_s or 0) > 50
    assert one.store.roster.beat("feed", fence)
    assert (one.stored().heartbeat_age_s or 0) < 5


def test_a_declaration_follows_the_code_and_leaves_the_rest(runners: Runners) -> None:
    one = runners("one")
    one.take()

    one.session.begin([msgspec.structs.replace(FEED, shard_group="gpu", heartbeat_interval_s=9.0)])

    stored = one.stored()
    assert (stored.shard_group, stored.heartbeat_interval_s, stored.holder) == ("gpu", 9.0, "one")
    assert query(one.store, "SELECT count(*) FROM {singleton}") == [(2,)]


# What is wanted of it


def test_whoever_is_to_have_it_is_seen_by_the_holder_until_it_is_taken(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()

    two.session.ask(two.look())

    assert one.look().asked_by == "two"
    one.give()
    two.take()
    assert two.look().asked_by is None


def test_a_question_to_a_holder_that_has_changed_meanwhile_is_void(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()
    seen = two.look()
    one.run()

    two.session.ask(seen)

    assert one.look().asked_by is None


def test_a_restart_is_wanted_until_it_starts(runners: Runners) -> None:
    one = runners("one")
    one.take()

    assert one.store.roster.restart("feed")
    assert not one.store.roster.restart("unknown")

    assert one.look().restart_wanted
    one.run()
    assert not one.look().restart_wanted


def test_a_runner_is_wanted_for_as_long_as_it_is_registered(runners: Runners, hosts: Hosts) -> None:
    one = runners("one")
    host = hosts("target")

    assert one.store.roster.move("feed", wanted=host.new.worker, avoided=None)
    assert not one.store.roster.move("unknown", wanted=host.new.worker, avoided=None)

    assert one.look().wanted == host.new.worker
    host.confirm(leaving=True)
    assert one.look().wanted is None
    host.confirm(leaving=False)
    assert one.look().wanted == host.new.worker
    host.session.leave()
    assert one.look().wanted is None
    assert one.stored().wanted == host.new.worker


def test_a_runner_is_avoided_until_it_takes_it_itself(runners: Runners) -> None:
    one, two = runners("one"), runners("two")
    one.take()
    one.store.roster.move("feed", wanted=None, avoided="one")

    one.give()
    two.take()
    assert two.look().avoided == "one"
    two.give()
    one.take()

    assert one.look().avoided is None
