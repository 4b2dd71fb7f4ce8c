"""Clocks that are wrong, or are stepped while everything runs: nothing comes early, nothing twice, and service goes on.

What is early is for the database's clock to say. Each clock is off by an hour, or is stepped by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from entitycelery.storage.sql import engines
from entitycelery.storage.sql.dialects.sqlite import SQLite
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.cluster.clusters import FAST, LEASE_TIMEOUT_S
from tests.conftest import url_or_skip
from tests.embedded_postgres import EmbeddedPostgres
from tests.faked_clock import HOUR_S, FakedClock
from tests.services import Services
from tests.storage.support import query
from tests.waiting import eventually

_NOW = {"postgresql": "SELECT extract(epoch FROM clock_timestamp())::float", "sqlite": "SELECT entity_now()"}


def now_s(bank: Bank) -> float:
    """What the database says."""
    [(epoch_s,)] = query(bank.entities.store, _NOW[bank.entities.store.dialect.name])
    return float(epoch_s)


def instant(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, UTC)


class Times:
    """A schedule of a second, a timer of a second, and delayed messages, each with a witness."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._ticks, self._rings, self._mail = (bank.Witness.ref(name) for name in ("ticks", "rings", "mail"))
        self._sent: list[float] = []
        self._steps: list[tuple[float, float]] = []
        bank.entities.schedule("second", every_s=1, target=self._ticks.tick)
        self._rings.wind.ask(now_s(bank) + 1)

    def send(self, *delays_s: float) -> None:
        """Have messages come so many seconds from now."""
        begun_s = now_s(self._bank)
        for delay_s in delays_s:
            due_s = begun_s + delay_s
            self._mail.come.options(deliver_at=instant(due_s)).send(due_s)
            self._sent.append(due_s)

    def ticks(self) -> list[float]:
        return [due_s for due_s, _ in self._seen(self._ticks)]

    def gaps(self) -> list[tuple[float, float]]:
        """Ticks that are not a second after the one before them."""
        return [(one, other) for one, other in pairwise(self.ticks()) if round(other - one, 5) != 1]

    def has_come(self, count: int) -> bool:
        """Whether so many of the messages have come, the earliest of them, each once."""
        return sorted(due_s for due_s, _ in self._seen(self._mail)) == sorted(self._sent)[:count]

    def go_on(self, *, timer: bool = True) -> None:
        """Wait until schedule and timer have fired twice more, and what was sent has come."""
        ticked, rung = len(self.ticks()) + 2, len(self._seen(self._rings)) + 2 * timer
        eventually(
            lambda: (
                len(self.ticks()) >= ticked and len(self._seen(self._rings)) >= rung and self.has_come(len(self._sent))
            )
        )

    def step(self, clock: FakedClock, off_s: float) -> None:
        """Set the database's clock."""
        before_s = now_s(self._bank)
        clock.set(off_s)
        self._steps.append((before_s, now_s(self._bank)))

    def _came_as_it_was_stepped(self, due_s: float, at_s: float) -> bool:
        # Due by the clock as it was, it was under way, and looked at the clock as it is.
        return any(due_s <= before_s + 1 and after_s - 1 <= at_s <= after_s + 2 for before_s, after_s in self._steps)

    def assert_not_early(self) -> None:
        seen = [one for witness in (self._ticks, self._rings, self._mail) for one in self._seen(witness)]
        early = [(due_s, at_s) for due_s, at_s in seen if at_s < due_s]
        assert [one for one in early if not self._came_as_it_was_stepped(*one)] == []

    def _seen(self, witness: Any) -> list[tuple[float, float]]:
        entities = self._bank.entities
        return list(entities.state(witness).seen) if entities.exists(witness) else []


@pytest.fixture
def clock(services: Services) -> Iterator[FakedClock]:
    url_or_skip(services.faketime())
    clock = FakedClock()
    yield clock
    clock.close()


# The clocks of workers


@pytest.mark.chaos
def test_workers_whose_clocks_are_two_hours_apart_fire_everything_once_and_nothing_early(
    new_bank: OpenBank, clock: FakedClock, services: Services
) -> None:
    bank = new_bank("amqp", app_name="clockwork", entity_shards_per_group=4)
    behind = FakedClock(-HOUR_S)
    clock.set(HOUR_S)
    for one in (clock, behind):
        bank.worker(variables=one.variables, slots=1)
    times = Times(bank)
    eventually(lambda: {round((one - now_s(bank)) / HOUR_S) for one in wall_clocks(bank)} == {1, -1})
    times.send(0.5, 1.0, 1.5)

    times.go_on()

    times.assert_not_early()
    assert times.gaps() == []
    behind.close()


def wall_clocks(bank: Bank) -> list[float]:
    """What the processes take for the time that serve some entities."""
    return [bank.Witness.ref(f"clock{number}").wall_clock_s.ask() for number in range(8)]


@pytest.mark.chaos_long
@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S])
def test_a_worker_all_of_whose_clocks_are_off_fires_everything_once_and_nothing_early(
    new_bank: OpenBank, clock: FakedClock, off_s: float
) -> None:
    clock.set(off_s)
    bank = new_bank("amqp", app_name="clockwork", entity_shards_per_group=4)
    bank.worker(variables={**clock.variables, "DONT_FAKE_MONOTONIC": "0"})
    times = Times(bank)
    times.send(0.5, 1.0, 1.5)

    times.go_on()

    times.assert_not_early()
    assert times.gaps() == []


@pytest.mark.chaos
def test_a_worker_whose_clock_is_stepped_fires_everything_once_and_nothing_early(
    new_bank: OpenBank, clock: FakedClock
) -> None:
    assert_steps_of_workers_change_nothing(new_bank("amqp", app_name="clockwork", entity_shards_per_group=4), clock)


@pytest.mark.chaos_long
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_workers_of_any_pool_bear_that_their_clocks_are_stepped(
    new_bank: OpenBank, clock: FakedClock, broker: str, pool: str
) -> None:
    bank = new_bank(broker, app_name="clockwork", entity_shards_per_group=4)

    assert_steps_of_workers_change_nothing(bank, clock, pool=pool)


def assert_steps_of_workers_change_nothing(bank: Bank, clock: FakedClock, pool: str = "prefork") -> None:
    bank.worker(pool=pool, variables=clock.variables)
    times = Times(bank)
    for off_s in (HOUR_S, -HOUR_S, 0.0):
        times.send(0.5, 1.0, 1.5)
        clock.set(off_s)
        times.go_on()

    times.assert_not_early()
    assert times.gaps() == []


# The database's clock


@pytest.fixture
def stepped_url(clock: FakedClock) -> Iterator[str]:
    """A PostgreSQL that goes by the clock."""
    server = EmbeddedPostgres(variables=clock.variables)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def new_stepped_bank(new_bank: OpenBank, stepped_url: str) -> OpenBank:
    """Opens a bank on it, with two workers that are quick to give each other up."""

    def open_one(lock_mode: str) -> Bank:
        given = {"entity_database_url": stepped_url, "entity_lock_mode": lock_mode, "entity_shards_per_group": 4}
        bank = new_bank("amqp", app_name="clockwork", **given, **FAST)
        for worker in [bank.start_worker(pool="threads") for _ in range(2)]:
            worker.await_ready()
        eventually(lambda: len(instances(bank)) == 2)
        return bank

    return open_one


def instances(bank: Bank) -> set[str]:
    return {runner.instance for runner in bank.entities.runners()}


def assert_stays(bank: Bank, there: set[str]) -> None:
    """Nobody is evicted, for longer than a lease lives unless it is renewed."""
    begun_s = now_s(bank)
    eventually(lambda: now_s(bank) > begun_s + 1.5 * LEASE_TIMEOUT_S)
    assert instances(bank) == there


def assert_serves(bank: Bank) -> None:
    """What is asked is answered, and what is delayed comes when it is due."""
    begun_s = now_s(bank)
    for number in range(8):
        bank.Witness.ref(f"served{number}").come.ask(0.0)
    bank.Witness.ref("delayed").come.options(delay_s=0.5).ask(begun_s + 0.5)
    assert all(at_s >= due_s for due_s, at_s in bank.entities.state(bank.Witness.ref("delayed")).seen)


@pytest.mark.chaos
@pytest.mark.parametrize("lock_mode", ["advisory", "rows"])
def test_nothing_comes_early_or_twice_when_the_databases_clock_is_stepped_back(
    new_stepped_bank: OpenBank, clock: FakedClock, lock_mode: str
) -> None:
    bank = new_stepped_bank(lock_mode)
    there, times = instances(bank), Times(bank)
    times.send(0.5)
    times.go_on()

    times.send(2.0)
    times.step(clock, -HOUR_S)
    assert_serves(bank)
    assert_stays(bank, there)
    assert times.has_come(1)

    # Now it reaches the moment at which it was stepped.
    times.step(clock, -1.0)
    times.go_on()
    assert_stays(bank, there)
    times.assert_not_early()
    assert times.gaps() == []


@pytest.mark.chaos
@pytest.mark.parametrize("lock_mode", ["advisory", pytest.param("rows", marks=pytest.mark.chaos_long)])
def test_what_is_due_comes_once_when_the_databases_clock_is_stepped_forward_and_back_again(
    new_stepped_bank: OpenBank, clock: FakedClock, lock_mode: str
) -> None:
    bank = new_stepped_bank(lock_mode)
    there, times = instances(bank), Times(bank)
    times.send(1.0, HOUR_S - 60, HOUR_S + 600)
    eventually(lambda: times.has_come(1) and times.ticks())

    times.step(clock, HOUR_S)
    eventually(lambda: times.has_come(2) and times.ticks()[-1] >= now_s(bank) - 3)
    assert_serves(bank)
    assert_stays(bank, there)
    # Of the late ticks the last one has fired, and every younger one.
    [(_, latest)] = times.gaps()
    assert 60 < now_s(bank) - latest < 120

    times.step(clock, 0.0)
    assert_serves(bank)
    fired = times.ticks()
    assert_stays(bank, there)
    assert times.ticks() == fired
    # What fired early does not fire again; who will not wait an hour has the schedule begin anew.
    bank.entities.pause_schedule("second")
    bank.entities.resume_schedule("second")
    eventually(lambda: len(times.ticks()) >= len(fired) + 2)

    times.assert_not_early()
    assert times.has_come(2)
    assert len(set(times.ticks())) == len(times.ticks())


@pytest.mark.chaos_long
@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("lock_mode", ["advisory", "rows"])
def test_the_shards_of_a_worker_that_is_killed_as_the_clock_is_stepped_are_served_elsewhere(
    new_stepped_bank: OpenBank, clock: FakedClock, lock_mode: str, off_s: float
) -> None:
    bank = new_stepped_bank(lock_mode)
    times = Times(bank)
    times.go_on()

    bank.workers[0].kill_tree()
    times.step(clock, off_s)

    eventually(lambda: len(instances(bank)) == 1, timeout_s=5 * LEASE_TIMEOUT_S)
    assert_serves(bank)
    assert_stays(bank, instances(bank))
    times.step(clock, max(off_s, 0.0))
    times.go_on()
    times.assert_not_early()
    assert len(set(times.ticks())) == len(times.ticks())


# SQLite goes by the clock of the machine


@pytest.mark.chaos
def test_everything_comes_once_and_nothing_early_when_the_clock_of_a_machine_with_sqlite_is_stepped(
    new_bank: OpenBank, clock: FakedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_machine(url: Any, cluster: str) -> SQLite:
        return SQLite(url, cluster, clock=clock.now_s)

    monkeypatch.setitem(engines.DIALECTS, ("sqlite+pysqlite", "advisory"), of_the_machine)  # type: ignore[arg-type]
    bank = new_bank("folder", app_name="clockwork", entity_shards_per_group=4)
    bank.worker(variables=clock.variables)
    times = Times(bank)
    times.send(0.5, HOUR_S - 60)
    eventually(lambda: times.has_come(1))

    times.step(clock, -HOUR_S)
    assert_serves(bank)
    assert times.has_come(1)
    times.step(clock, -1.0)
    eventually(lambda: len(times.ticks()) >= 4)
    assert times.gaps() == []
    times.step(clock, HOUR_S)
    times.go_on()
    assert_serves(bank)

    times.assert_not_early()
    assert len(times.gaps()) == 1
