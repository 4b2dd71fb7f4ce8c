"""Leases and handovers, broken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.address import ShardId, lock_space
from entitycelery.placement import Placement, Runner
from entitycelery.sharding.keeper import Keeper
from entitycelery.silence import Said, Silences
from entitycelery.storage.sql.dialects import session_holds
from entitycelery.storage.sql.dialects.advisory import AdvisoryLocks
from entitycelery.storage.sql.dialects.session_holds import SessionHolds
from entitycelery.storage.sql.lease_session import SqlLeaseSession
from entitycelery.storage.sql.runner import Runners
from entitycelery.storage.sql.statement import fetch
from entitycelery.worker import consumption, drain_slot
from entitycelery.worker.drain_task import Dispatcher
from tests.mutants.mutant import Mutant, around, no_op, reword


def _handover_waits_for_nobody(patch: pytest.MonkeyPatch) -> None:
    def hand_over(self: Keeper, session: Any, leaving_us: Collection[ShardId], _number: int, _why: str) -> None:
        session.give(sorted(leaving_us))

    patch.setattr(Keeper, "_hand_over", hand_over)


def _the_frozen_stay(patch: pytest.MonkeyPatch) -> None:
    def living(self: Keeper, _session: Any, placement: Placement, _me: Runner) -> list[Runner]:
        return list(placement.runners)

    patch.setattr(Keeper, "_living", living)


def _lists_are_good_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(consumption, "now_s", lambda: 0.0)


def _locks_have_two_holders(patch: pytest.MonkeyPatch) -> None:
    def lock(self: SessionHolds, conn: Connection, shards: Sequence[ShardId]) -> list[ShardId]:
        return list(shards)

    patch.setattr(SessionHolds, "lock", lock)


def _rows_have_two_holders(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "(l.holder IS NULL OR", "(true OR")


def _a_second_take_needs_a_second_release(patch: pytest.MonkeyPatch) -> None:
    def take(real: Callable[..., Any], self: SqlLeaseSession, shards: Sequence[ShardId]) -> Any:
        held, self._held = self._held, set()
        taken = real(self, shards)
        self._held |= held
        return taken

    around(patch, SqlLeaseSession, "take", take)


def _groups_share_their_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session_holds, "lock_space", lambda cluster, kind: lock_space(cluster, kind.partition(" ")[0]))


def _clusters_share_their_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session_holds, "lock_space", lambda _cluster, kind: lock_space("all", kind))


def _whoever_is_seen_is_removed_too(patch: pytest.MonkeyPatch) -> None:
    def remove(self: Runners, conn: Connection, runner: Runner) -> bool:
        self.withdraw(conn, runner.instance)
        return True

    patch.setattr(Runners, "remove", remove)


def _silence_is_by_the_databases_clock(patch: pytest.MonkeyPatch) -> None:
    def heard(_self: Silences, said: Mapping[str, Said], _looked_s: float) -> dict[str, float]:
        return {name: max(0.0, one.age_s) for name, one in said.items()}

    patch.setattr(Silences, "heard", heard)


def _sessions_are_as_young_as_they_look(patch: pytest.MonkeyPatch) -> None:
    def evict(_self: AdvisoryLocks, conn: Connection, token: str, session: int | None, since_epoch_s: float) -> bool:
        statement = """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid = %(session)s AND backend_start <= to_timestamp(%(since)s)
        """
        return bool(fetch(conn, statement, {"session": session, "since": since_epoch_s}))

    patch.setattr(AdvisoryLocks, "evict", evict)


def _sessions_of_the_evicted_live_on(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, SessionHolds, "end_sessions")


def _starved_only_while_mail_waits(patch: pytest.MonkeyPatch) -> None:
    def host(real: Callable[..., None], self: Dispatcher, shards: Sequence[ShardId]) -> None:
        real(self, shards)
        if not self._waiting:
            self._waiting_since_s = None

    around(patch, Dispatcher, "host", host)


def _late_drains_begin_all_the_same(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drain_slot, "_may_have_gone", lambda _settings, _asked_s: False)


def _deaths_are_not_watched(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, SessionHolds, "watch")


def _nobody_is_told(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, SessionHolds, "announce")


_KEEPER, _CONSUMPTION = "tests/unit/test_keeper.py", "tests/unit/test_consumption.py"
_STEPPED = "tests/storage/test_stepped_clock.py"
_LEASES, _RUNNERS = "tests/storage/test_leases.py", "tests/storage/test_runners.py"
_SLOT = "tests/unit/test_drain_slot.py"
_ONE_HOLDER = f"{_LEASES}::test_a_lease_has_one_holder_and_taking_returns_exactly_what_was_had"

LEASE_MUTANTS = [
    Mutant(
        "handover-waits-for-nobody",
        "A shard is given up when the drain that works on it has ended, or has had its time.",
        _handover_waits_for_nobody,
        (
            f"{_KEEPER}::test_a_shard_that_drains_work_on_goes_last_and_not_before_they_have_had_their_time",
            f"{_KEEPER}::test_a_shard_is_kept_until_the_worker_has_stopped_to_consume_it_or_has_had_its_time",
        ),
    ),
    Mutant(
        "the-frozen-stay",
        "A runner that has not been seen for as long as a lease lives is removed.",
        _the_frozen_stay,
        (f"{_KEEPER}::test_a_runner_that_is_not_seen_any_more_is_removed_and_its_shards_are_served",),
    ),
    Mutant(
        "lists-are-good-for-ever",
        "What a worker was told to consume is good for its time only.",
        _lists_are_good_for_ever,
        (
            f"{_CONSUMPTION}::test_a_list_is_good_for_its_time_only",
            f"{_CONSUMPTION}::test_a_worker_that_was_frozen_follows_no_list_from_before",
        ),
    ),
    Mutant(
        "locks-have-two-holders",
        "A shard whose lock is refused is not taken.",
        _locks_have_two_holders,
        (f"{_ONE_HOLDER}[postgresql]",),
    ),
    Mutant(
        "rows-have-two-holders",
        "Where leases are rows, one that has not run out is not taken.",
        _rows_have_two_holders,
        (f"{_ONE_HOLDER}[sqlite]", f"{_ONE_HOLDER}[rows]"),
    ),
    Mutant(
        "a-second-take-needs-a-second-release",
        "A lock that is held is not taken again.",
        _a_second_take_needs_a_second_release,
        (f"{_LEASES}::test_a_lease_that_was_taken_again_and_again_is_given_up_at_once[postgresql]",),
    ),
    Mutant(
        "groups-share-their-locks",
        "Shards of one number in several groups have locks of their own.",
        _groups_share_their_locks,
        (f"{_LEASES}::test_shards_of_one_number_in_several_groups_are_several_leases[postgresql]",),
    ),
    Mutant(
        "clusters-share-their-locks",
        "Shards of one number in several clusters have locks of their own.",
        _clusters_share_their_locks,
        (f"{_LEASES}::test_two_clusters_in_one_database_never_meet",),
    ),
    Mutant(
        "whoever-is-seen-is-removed-too",
        "A runner that has renewed its row since it was looked at is not removed.",
        _whoever_is_seen_is_removed_too,
        (f"{_RUNNERS}::test_a_runner_is_removed_only_when_it_has_not_been_seen_since_the_look[postgresql]",),
    ),
    Mutant(
        "silence-is-by-the-databases-clock",
        "Who is silent is judged by the clock of the judge, not by the database's.",
        _silence_is_by_the_databases_clock,
        (
            f"{_KEEPER}::test_nobody_is_removed_when_the_databases_clock_is_stepped[3600.0]",
            f"{_STEPPED}::test_a_drain_that_says_that_it_lives_keeps_its_claims[postgresql-3600.0]",
            f"{_STEPPED}::test_a_drain_that_is_silent_loses_its_claims_in_time[rows--3600.0]",
        ),
    ),
    Mutant(
        "sessions-are-as-young-as-they-look",
        "A session that seems to begin only later began before the clock was stepped back, and is no other's.",
        _sessions_are_as_young_as_they_look,
        (
            f"{_STEPPED}::test_a_drain_loses_its_claims_though_it_spoke_before_its_session_began_"
            "by_a_clock_that_was_stepped_back[postgresql]",
        ),
    ),
    Mutant(
        "sessions-of-the-evicted-live-on",
        "The database sessions of an evicted worker are ended.",
        _sessions_of_the_evicted_live_on,
        (
            f"{_RUNNERS}::test_the_sessions_of_an_evicted_worker_are_ended_and_no_others",
            f"{_RUNNERS}::test_an_evicted_runner_holds_nothing_and_learns_of_it[postgresql]",
        ),
    ),
    Mutant(
        "starved-only-while-mail-waits",
        "A worker whose slots are all taken stays starved though its shards have gone.",
        _starved_only_while_mail_waits,
        (
            "tests/unit/test_dispatcher.py::"
            "test_a_worker_whose_slots_all_hang_stays_starved_without_its_shards_until_one_is_free",
        ),
    ),
    Mutant(
        "late-drains-begin-all-the-same",
        "A drain that had to wait for its slot leaves out shards that its worker does not hold any more.",
        _late_drains_begin_all_the_same,
        (
            f"{_SLOT}::test_a_drain_that_begins_late_leaves_out_what_its_worker_does_not_hold_any_more",
            f"{_SLOT}::test_a_drain_that_begins_late_in_a_former_holder_begins_nothing",
        ),
    ),
    Mutant(
        "deaths-are-not-watched",
        "Whoever watches a runner learns of its death at once.",
        _deaths_are_not_watched,
        (f"{_LEASES}::test_the_watcher_sees_a_death_at_once",),
    ),
    Mutant(
        "nobody-is-told",
        "Whoever waits learns at once of a lease that is free.",
        _nobody_is_told,
        (f"{_LEASES}::test_whatever_another_does_wakes_who_waits",),
    ),
]
