"""How long a runner sleeps until delayed mail is due, and for what it rings then: by clocks that a test moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.exceptions import StoreUnavailable
from entitycelery.settings import Settings
from entitycelery.storage.port import Announced, DueMoments
from entitycelery.worker import due_mail, duties
from entitycelery.worker.due_mail import Announcements, DueMail

SETTINGS = Settings(refresh_interval_s=1.0, due_interval_s=0.05)
A, B, C = (ShardId("default", number) for number in range(3))
EVER = -1e11
NOON = 1_700_000_000.0


class Clocks:
    """The database's, which anybody may step, and the machine's own, which nobody can."""

    def __init__(self) -> None:
        self.database_s = NOON
        self.own_s = 5_000.0

    def pass_(self, seconds: float) -> None:
        self.database_s += seconds
        self.own_s += seconds


class Database:
    """Has mail that is due at some moments, and nobody who handles it; sees two seconds ahead."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self.moments: dict[ShardId, list[float]] = {}
        self.asked: list[Mapping[ShardId, float]] = []
        self.answers_after_s = 0.0
        self.is_away = False

    def due_moments(self, since: Mapping[ShardId, float]) -> DueMoments:
        if self.is_away:
            raise StoreUnavailable("away")
        now = self._clocks.database_s
        self.asked.append(dict(since))
        self._clocks.pass_(self.answers_after_s)
        moments = {shard: self.moments.get(shard, []) for shard in since}
        due = {
            s: max(m for m in found if m <= now) for s, found in moments.items() if min(found, default=now + 1) <= now
        }
        return DueMoments(
            now,
            {shard: moment for shard, moment in due.items() if moment >= since[shard]},
            min((m for found in moments.values() for m in found if now < m <= now + 2), default=None),
        )


class Hosted:
    def __init__(self) -> None:
        self.held = frozenset({A, B})
        self.fresh: frozenset[ShardId] = frozenset()
        self.is_first = True
        self.moved = 7
        self.woken: list[ShardId] = []

    def settle_moved(self) -> None: ...

    def wake(self, shards: Sequence[ShardId]) -> None:
        self.woken += shards


class Bench:
    """A duty on a database, with a clock."""

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.database = Database(self.clocks)
        self.hosted = Hosted()
        self.duty = DueMail(self.database, self.hosted, SETTINGS)  # type: ignore[arg-type]

    def told(self) -> Bench:
        self.duty.follow(is_told=True)
        return self

    def tick(self) -> list[ShardId]:
        """Have the loop come by; the shards that are rung for."""
        self.hosted.woken = []
        self.duty.run_when_due(self.clocks.own_s)
        return self.hosted.woken

    @property
    def sleeps_s(self) -> float:
        return self.duty.next_at_s - self.clocks.own_s

    def sleep(self) -> list[ShardId]:
        """Sleep as long as the duty wants to, and have the loop come by."""
        self.clocks.pass_(max(0.0, self.sleeps_s))
        return self.tick()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    for module in (due_mail, duties):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.clocks.own_s))
    return made


def near(seconds: float) -> Any:
    return pytest.approx(seconds, abs=1e-5)


# How long to sleep


def test_a_runner_sleeps_until_the_next_moment_and_rings_then(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.4], B: [NOON + 0.7]}

    assert bench.told().tick() == []
    assert bench.sleeps_s == near(0.401)
    assert bench.sleep() == [A]
    assert bench.sleeps_s == near(0.3)
    assert bench.sleep() == [B]
    assert len(bench.database.asked) == 3


def test_without_a_moment_in_sight_it_sleeps_for_one_interval(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 3_600]}

    bench.told().tick()

    assert bench.sleeps_s == near(1.0)


def test_the_time_that_the_database_takes_to_answer_counts(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.4]}
    bench.database.answers_after_s = 0.15

    bench.told().tick()

    assert bench.sleeps_s == near(0.251)


def test_a_moment_behind_one_that_nobody_handles_is_seen(bench: Bench) -> None:
    bench.database.moments = {A: [NOON - 5, NOON + 0.3]}
    assert bench.told().tick() == [A]

    assert bench.sleep() == [A]


def test_moments_that_follow_each_other_closely_are_rung_for_together(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.0001 * n for n in range(1_000)]}
    bench.told().tick()

    rung = [bench.sleep() for _ in range(10)]

    assert rung == [[A]] * 10
    assert bench.clocks.own_s - 5_000.0 >= 10 * 0.005


def test_a_look_that_comes_too_early_is_repeated_at_once(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.4]}
    bench.told().tick()
    bench.clocks.pass_(0.3999)
    bench.duty.next_at_s = 0.0

    assert bench.tick() == []
    assert bench.sleep() == [A]
    assert bench.clocks.database_s - (NOON + 0.4) == near(0.0049)


# What it is told


def test_it_looks_when_mail_is_due_of_which_it_is_told(bench: Bench) -> None:
    bench.told().tick()
    bench.clocks.pass_(0.2)
    bench.database.moments = {A: [NOON + 0.5]}

    bench.duty.hear(NOON + 0.5)

    assert bench.sleeps_s == near(0.301)
    assert bench.sleep() == [A]


def test_a_later_moment_than_the_next_look_changes_nothing(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.4]}
    bench.told().tick()

    bench.duty.hear(NOON + 0.6)

    assert bench.sleeps_s == near(0.401)
    assert len(bench.database.asked) == 1


def test_mail_that_was_due_before_it_could_be_seen_is_rung_for_at_once(bench: Bench) -> None:
    bench.told().tick()
    bench.clocks.pass_(0.3)
    bench.database.moments = {B: [NOON - 60]}

    bench.duty.hear(NOON - 60)

    assert bench.sleeps_s <= 0
    assert bench.tick() == [B]


def test_whoever_is_not_told_looks_often_and_at_the_next_moment(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.03]}
    bench.tick()
    assert bench.sleeps_s == near(0.031)

    assert bench.sleep() == [A]
    assert bench.sleeps_s == near(0.05)
    bench.database.moments = {B: [bench.clocks.database_s + 0.01]}
    # It was due before its commit could be seen, which nobody told.
    bench.clocks.pass_(0.05)
    assert bench.tick() == [B]


# For what it rings


def test_it_asks_for_what_has_become_due_since_the_last_look(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.4]}
    bench.told().tick()
    bench.sleep()

    assert bench.database.asked[0] == {A: EVER, B: EVER}
    assert bench.database.asked[1] == {A: NOON, B: NOON}


def test_it_asks_for_everything_once_in_an_interval(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.6]}
    bench.told().tick()
    rung = [bench.sleep(), bench.sleep()]

    assert bench.database.asked[2] == {A: EVER, B: EVER}
    # The second time not: it was rung for just now.
    assert rung == [[A], []]
    assert bench.sleep() == [A]


def test_a_shard_that_was_taken_is_looked_at_from_the_beginning(bench: Bench) -> None:
    bench.database.moments = {C: [NOON - 3_600]}
    bench.told().tick()
    assert bench.duty.interrupts == [bench.hosted.moved]

    bench.hosted.held = frozenset({B, C})
    bench.duty.next_at_s = 0.0

    assert bench.tick() == [C]
    assert bench.database.asked[1] == {B: NOON, C: EVER}


def test_a_runner_without_shards_asks_nothing(bench: Bench) -> None:
    bench.hosted.held = frozenset()

    bench.told().tick()

    assert bench.database.asked == []
    assert bench.sleeps_s == near(1.0)


# When something goes wrong


def test_a_database_clock_that_is_stepped_back_fires_nothing_early(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 0.4]}
    bench.told().tick()
    bench.clocks.database_s -= 3_600

    rung = [bench.sleep() for _ in range(5)]

    assert rung == [[]] * 5
    # What is stored meanwhile is due by the new time.
    bench.database.moments[B] = [bench.clocks.database_s + 0.2]
    bench.duty.hear(bench.clocks.database_s + 0.2)
    assert bench.sleeps_s == near(0.201)
    assert bench.sleep() == [B]


def test_mail_stored_right_after_a_step_back_is_rung_for(bench: Bench) -> None:
    bench.told().tick()
    bench.clocks.database_s -= 3_600
    bench.clocks.pass_(0.2)
    due_epoch_s = bench.clocks.database_s + 0.1
    bench.database.moments = {B: [due_epoch_s]}

    bench.duty.hear(due_epoch_s)

    rung = [bench.sleep() for _ in range(2)]
    assert rung == [[], [B]]
    assert bench.clocks.database_s - due_epoch_s < 0.01


def test_a_database_clock_that_is_stepped_forward_is_noticed_within_an_interval(bench: Bench) -> None:
    bench.database.moments = {A: [NOON + 600]}
    bench.told().tick()
    bench.clocks.database_s += 3_600

    assert bench.sleep() == [A]


def test_a_database_that_is_away_is_asked_less_and_less_often_and_nothing_hastens_that(bench: Bench) -> None:
    bench.told().tick()
    bench.database.is_away = True
    bench.sleep()
    assert bench.sleeps_s == near(1.0)
    assert bench.duty.interrupts == []

    for _ in range(5):
        bench.sleep()
    assert bench.sleeps_s == near(5.0)
    bench.database.is_away = False
    bench.database.moments = {A: [bench.clocks.database_s + 1.0]}
    assert bench.sleep() == [A]


# Announcements


class Ear:
    def __init__(self) -> None:
        self.announced = Announced(frozenset(), None)
        self.has_ended = self.is_closed = False

    def fileno(self) -> int:
        return 9

    def take(self) -> Announced:
        if self.has_ended:
            raise StoreUnavailable("ended")
        return self.announced

    def close(self) -> None:
        self.is_closed = True


class Announcing(Bench):
    """A database that can be listened to."""

    def __init__(self, ear: Ear | None) -> None:
        super().__init__()
        self.ears = [ear]
        store = SimpleNamespace(listen=lambda: self.ears.pop(0) if self.ears else None)
        self.announcements = Announcements(store, self.hosted, SETTINGS, self.duty)  # type: ignore[arg-type]

    def come_by(self) -> list[ShardId]:
        self.announcements.next_at_s = 0.0
        self.hosted.woken = []
        self.announcements.run_when_due(self.clocks.own_s)
        return self.hosted.woken


def announcing(monkeypatch: pytest.MonkeyPatch, ear: Ear | None) -> Announcing:
    made = Announcing(ear)
    for module in (due_mail, duties):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.clocks.own_s))
    return made


def test_what_is_announced_is_rung_for_or_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear()
    bench = announcing(monkeypatch, ear)
    bench.come_by()
    bench.tick()
    assert (bench.announcements.interrupts, bench.sleeps_s) == ([9], near(1.0))

    ear.announced = Announced(frozenset({A, C}), NOON + 0.25)

    assert bench.come_by() == [A]
    assert bench.sleeps_s == near(0.251)


def test_whoever_begins_to_listen_looks_at_everything_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = announcing(monkeypatch, Ear())
    bench.tick()
    bench.clocks.pass_(0.01)

    bench.come_by()

    assert bench.sleeps_s <= 0
    bench.tick()
    assert bench.database.asked[1] == {A: EVER, B: EVER}


def test_whoever_hears_nothing_more_looks_often_until_it_listens_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear()
    bench = announcing(monkeypatch, ear)
    bench.come_by()
    bench.tick()
    ear.has_ended = True

    bench.come_by()
    bench.tick()

    assert ear.is_closed
    assert bench.announcements.interrupts == []
    assert bench.sleeps_s == near(0.05)
    bench.ears = [Ear()]
    bench.come_by()
    bench.tick()
    assert bench.sleeps_s == near(1.0)


def test_a_store_that_announces_nothing_is_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = announcing(monkeypatch, None)

    bench.come_by()
    bench.tick()

    assert bench.announcements.interrupts == []
    assert bench.sleeps_s == near(0.05)
