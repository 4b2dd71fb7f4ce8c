"""The database's clock is stepped by an hour: nothing is early, no living one is dead, and no dead one lives."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from entitycelery.placement import Runner
from entitycelery.silence import Silences
from entitycelery.storage.sql.store import SqlStore
from tests.conftest import url_or_skip
from tests.emptied_postgres import empty
from tests.services import Services, fresh_postgres_database
from tests.storage.leases import Host, Hosts
from tests.storage.stepped import HOUR_S, SteppedClock
from tests.storage.support import LOCK_MODE_VARIABLE, SHARD, append, handle, handle_all, message, opened
from tests.storage.test_singletons import Runners
from tests.waiting import eventually

STEPS = [HOUR_S, -HOUR_S]


@pytest.fixture(scope="module")
def database(services: Services) -> Iterator[str]:
    """A PostgreSQL database that no other module's tests go by."""
    with fresh_postgres_database(url_or_skip(services.postgres())) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql", "rows"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SteppedClock]:
    if request.param == "sqlite":
        yield SteppedClock(request.getfixturevalue("sqlite_url"), monkeypatch)
        return
    monkeypatch.setenv(LOCK_MODE_VARIABLE, "rows" if request.param == "rows" else "advisory")
    url = request.getfixturevalue("database")
    yield SteppedClock(url, monkeypatch)
    empty(url)


@pytest.fixture
def store(clock: SteppedClock) -> Iterator[SqlStore]:
    with opened(clock.url) as made:
        yield made


@pytest.fixture
def hosts(clock: SteppedClock) -> Iterator[Hosts]:
    made = Hosts(clock.url)
    with made.stack:
        yield made


class Watch:
    """Looks at runners again and again, as a keeper does."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._silences = Silences()

    def sees(self, instance: str) -> Runner:
        found = self._silences.placement(self._host.look(), time.monotonic()).runner(instance)
        assert found is not None
        return found


# Mail


def test_delayed_mail_comes_when_the_clock_reaches_its_moment_and_not_before(
    store: SqlStore, clock: SteppedClock
) -> None:
    due = message("a", delay_s=0.2)
    later = message("b", delay_s=HOUR_S - 60)
    append(store, due, later)

    clock.step(-HOUR_S)
    with store.drain_session(SHARD) as session:
        assert handle(session) == []
    clock.step(HOUR_S)
    assert eventually(lambda: handle_all(store)) == [due.id]

    # By definition: its moment is past, though it is not by ours.
    clock.step(HOUR_S)
    assert handle_all(store) == [later.id]
    clock.step(-HOUR_S)
    assert handle_all(store) == []


def test_mail_that_was_sent_after_a_step_comes_as_ever(store: SqlStore, clock: SteppedClock) -> None:
    append(store, message("before", delay_s=10.0))
    for by_s in (-HOUR_S, 2 * HOUR_S, -2 * HOUR_S):
        clock.step(by_s)
        handle_all(store)
        now, delayed = message("now"), message("delayed", delay_s=0.2)
        append(store, now, delayed)

        assert handle_all(store) == [now.id]
        assert eventually(lambda: handle_all(store)) == [delayed.id]


# Runners and their leases


@pytest.mark.parametrize("by_s", STEPS)
def test_a_runner_that_renews_its_row_is_seen_whatever_the_clock_does(
    hosts: Hosts, clock: SteppedClock, by_s: float
) -> None:
    one, watch = hosts("one"), Watch(hosts("other"))
    for _ in range(2):
        one.confirm()
        assert watch.sees(one.instance).unseen_s < 5

    clock.step(by_s)

    assert watch.sees(one.instance).unseen_s < 5
    one.confirm()
    assert watch.sees(one.instance).unseen_s < 5


@pytest.mark.parametrize("by_s", STEPS)
def test_a_runner_that_says_nothing_is_silent_by_our_own_clock(hosts: Hosts, clock: SteppedClock, by_s: float) -> None:
    dead, watch = hosts("dead"), Watch(hosts("other"))
    watch.sees(dead.instance)

    clock.step(by_s)

    eventually(lambda: 0.3 < watch.sees(dead.instance).unseen_s < 5)


@pytest.mark.parametrize("by_s", STEPS)
def test_a_runner_that_was_not_seen_before_a_step_can_be_removed_and_leaves_nothing_held(
    hosts: Hosts, clock: SteppedClock, by_s: float
) -> None:
    dead, other = hosts("dead"), hosts("other")
    dead.take(0, 1)

    clock.step(by_s)

    assert other.session.remove(other.sees(dead.instance))
    assert eventually(lambda: other.take(0, 1)).keys() == {0, 1}


@pytest.mark.parametrize("by_s", STEPS)
def test_a_runner_that_was_seen_after_a_step_is_not_removed_by_who_looked_before(
    hosts: Hosts, clock: SteppedClock, by_s: float
) -> None:
    one, other = hosts("one"), hosts("other")
    seen = other.sees(one.instance)

    clock.step(by_s)
    one.confirm()

    assert not other.session.remove(seen)
    assert one.confirm() is not None


@pytest.mark.parametrize("by_s", STEPS)
def test_a_runner_that_leaves_after_a_step_leaves_no_row(hosts: Hosts, clock: SteppedClock, by_s: float) -> None:
    one, other = hosts("one"), hosts("other")
    one.take(0)

    clock.step(by_s)
    one.session.leave()

    assert [runner.instance for runner in other.look().runners] == [other.instance]
    assert other.take(0).keys() == {0}


def test_leases_go_on_when_the_clock_is_stepped_back(hosts: Hosts, clock: SteppedClock) -> None:
    one, other = hosts("one"), hosts("other")
    one.take(0, 1)

    clock.step(-HOUR_S)

    assert other.take(0, 1) == {}
    assert one.confirm() == {0, 1}


def test_leases_that_ran_out_by_a_step_are_had_again_at_once(hosts: Hosts, clock: SteppedClock) -> None:
    one = hosts("one")
    one.take(0, 1)

    clock.step(HOUR_S)
    held = one.confirm()

    assert held is not None
    assert held | one.take(*{0, 1} - held).keys() == {0, 1}
    assert one.confirm() == {0, 1}


# Singletons


@pytest.mark.parametrize("by_s", STEPS)
def test_a_singleton_is_free_soon_whatever_the_clock_did_as_its_holder_died(clock: SteppedClock, by_s: float) -> None:
    runners = Runners(clock.url)
    with runners.stack:
        dead, other = runners("dead"), runners("other")
        assert dead.take()

        clock.step(by_s)
        runners.end(dead)

        before = eventually(other.take, timeout_s=10)
        assert (before.holder, before.handed_over) == ("dead", False)


def test_a_singleton_stays_with_who_goes_on_looking_when_the_clock_is_stepped_back(clock: SteppedClock) -> None:
    runners = Runners(clock.url)
    with runners.stack:
        one, other = runners("one"), runners("other")
        assert one.take()

        clock.step(-HOUR_S)

        assert one.has()
        assert not other.look().is_free
        assert other.take() is None


# Drains


@pytest.mark.parametrize("by_s", STEPS)
def test_a_drain_that_says_that_it_lives_keeps_its_claims(store: SqlStore, clock: SteppedClock, by_s: float) -> None:
    append(store, message("a"))
    with opened(clock.url) as runner, store.drain_session(SHARD) as session:
        session.claim(10)
        assert runner.remove_remains(5.0) == []

        clock.step(by_s)

        assert runner.remove_remains(5.0) == []
        session.say_alive()
        assert runner.remove_remains(5.0) == []


@pytest.mark.parametrize("by_s", STEPS)
def test_a_drain_that_is_silent_loses_its_claims_in_time(store: SqlStore, clock: SteppedClock, by_s: float) -> None:
    sent = message("a")
    append(store, sent)
    with opened(clock.url, lease_s=2 * HOUR_S) as frozen, frozen.drain_session(SHARD) as session:
        session.claim(10)
        store.remove_remains(0.5)

        clock.step(by_s)

        assert len(eventually(lambda: store.remove_remains(0.5), timeout_s=10)) == 1
        assert eventually(lambda: handle_all(store)) == [sent.id]


def test_a_drain_loses_its_claims_though_it_spoke_before_its_session_began_by_a_clock_that_was_stepped_back(
    store: SqlStore, clock: SteppedClock
) -> None:
    sent = message("a")
    append(store, sent)
    with opened(clock.url, lease_s=2 * HOUR_S) as frozen, frozen.drain_session(SHARD) as session:
        session.claim(10)

        clock.step(-HOUR_S)
        session.say_alive()

        assert len(eventually(lambda: store.remove_remains(0.5), timeout_s=10)) == 1
        assert eventually(lambda: handle_all(store)) == [sent.id]
