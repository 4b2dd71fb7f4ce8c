"""Wake-ups, broken, where tests/storage/test_protocol_wakeups.py and test_protocol_question.py do not do so."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Queue
from kombu.messaging import Producer

from entitycelery.address import ShardId
from entitycelery.runtime.drain import Drain, Drained
from entitycelery.storage.sql.change import Changes
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.transports import broker
from entitycelery.transports.bell import Bell
from entitycelery.transports.broker import BrokerRinger
from entitycelery.worker.drain_request import DrainRequest
from entitycelery.worker.drain_task import Dispatcher
from entitycelery.worker.due_mail import DueMail
from entitycelery.worker.duties import Sweep
from tests.mutants.mutant import Mutant, around, no_op, replace_everywhere


def _drains_that_stop_early_keep_quiet(patch: pytest.MonkeyPatch) -> None:
    around(patch, Drain, "run", lambda real, self: Drained(real(self).turns, more=False))


def _drains_ring_for_nobody(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, Bell, "mail_stored")


def _nobody_hears_of_callers(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, PostgreSQL, "after_caller_commit")


def _cancels_ring_for_nobody(patch: pytest.MonkeyPatch) -> None:
    around(patch, Changes, "_cancelled", lambda real, *args: (real(*args)[0], None))


def _nobody_sweeps(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, Sweep, "tick")


def _sweeps_ring_for_young_mail(patch: pytest.MonkeyPatch) -> None:
    def tick(real: Callable[..., None], self: Sweep) -> None:
        self._patience_s = 0.0
        real(self)

    around(patch, Sweep, "tick", tick)


def _mail_from_the_future_waits_for_it(patch: pytest.MonkeyPatch) -> None:
    def tick(real: Callable[..., None], self: Sweep) -> None:
        wake = self._hosting.wake
        waiting = self._store.waiting_shards(sorted(self._hosting.held))
        young = {mail.shard for mail in waiting if mail.waiting_s < self._patience_s}
        self._hosting = SimpleNamespace(
            held=self._hosting.held, wake=lambda shards: wake([shard for shard in shards if shard not in young])
        )
        real(self)

    around(patch, Sweep, "tick", tick)


def _sweeps_look_at_all_shards(patch: pytest.MonkeyPatch) -> None:
    def tick(real: Callable[..., None], self: Sweep) -> None:
        self._hosting = SimpleNamespace(held=ALL_SHARDS, wake=self._hosting.wake)
        real(self)

    around(patch, Sweep, "tick", tick)


def _due_mail_waits_for_the_sweep(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, DueMail, "tick")


def _wakeups_never_expire(patch: pytest.MonkeyPatch) -> None:
    def publish(real: Callable[..., Any], *args: Any, expiration: float, **options: Any) -> Any:
        return real(*args, **options)

    around(patch, Producer, "publish", publish)


def _queues_never_forget(patch: pytest.MonkeyPatch) -> None:
    def queue(cluster: str, shard: Any, expires_s: float) -> Queue:
        return Queue(broker.queue_name(cluster, shard), durable=True)

    replace_everywhere(patch, broker.shard_queue, queue)


def _nobody_counts_wakeups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BrokerRinger, "_has_enough", lambda self, channel, shard: False)


def _senders_never_rest(patch: pytest.MonkeyPatch) -> None:
    def ring(real: Callable[..., None], self: Bell, *args: Any, **options: Any) -> None:
        self._resting_until = 0.0
        real(self, *args, **options)

    around(patch, Bell, "ring", ring)


def _any_shard_is_drained(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatcher, "knows", lambda self, shard: True)


def _thrown_away_drains_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DrainRequest, "accepted", True)


def _drains_wait_for_no_slot(patch: pytest.MonkeyPatch) -> None:
    def begin(real: Callable[..., None], self: Dispatcher, *, slots: Any, **options: Any) -> None:
        real(self, slots=lambda: 1_000, **options)

    around(patch, Dispatcher, "__init__", begin)


ALL_SHARDS = frozenset(ShardId("default", number) for number in range(64))
_SWEEP = "tests/runtime/test_duties.py::"
_BROKER = "tests/unit/test_wakeups.py::"
_DISPATCHER = "tests/unit/test_dispatcher.py::"

WAKEUP_MUTANTS = [
    Mutant(
        "drains-that-stop-early-keep-quiet",
        "A drain whose time is over says that there may be more.",
        _drains_that_stop_early_keep_quiet,
        ("tests/storage/test_protocol_wakeups.py::test_a_drain_that_stops_early_says_so[sqlite]",),
    ),
    Mutant(
        "drains-ring-for-nobody",
        "After its commit a drain rings for the shards that its turns wrote to.",
        _drains_ring_for_nobody,
        ("tests/runtime/test_drain.py::test_a_drain_rings_for_the_shards_that_its_turns_wrote_to[sqlite]",),
    ),
    Mutant(
        "nobody-hears-of-callers",
        "Mail that was sent on a caller's connection is announced with the caller's commit.",
        _nobody_hears_of_callers,
        ("tests/storage/test_schema.py::test_commits_of_callers_are_announced_to_their_cluster_alone",),
    ),
    Mutant(
        "cancels-ring-for-nobody",
        "Who cancels a blocking message rings for its shard.",
        _cancels_ring_for_nobody,
        ("tests/storage/test_cancel.py::test_a_blocking_head_that_is_cancelled_lets_the_others_pass[memory]",),
    ),
    Mutant(
        "nobody-sweeps",
        "The sweep rings for mail that has waited longer than one interval.",
        _nobody_sweeps,
        (f"{_SWEEP}test_the_sweep_rings_for_mail_whose_wakeup_was_lost[sqlite]",),
    ),
    Mutant(
        "mail-from-the-future-waits-for-it",
        "The sweep rings for mail that was sent later than now, before the clock was stepped back.",
        _mail_from_the_future_waits_for_it,
        (f"{_SWEEP}test_the_sweep_rings_for_mail_that_was_sent_before_the_clock_was_stepped_back[sqlite]",),
    ),
    Mutant(
        "sweeps-ring-for-young-mail",
        "The sweep leaves younger mail to its wake-up.",
        _sweeps_ring_for_young_mail,
        (f"{_SWEEP}test_the_sweep_rings_for_mail_whose_wakeup_was_lost[sqlite]",),
    ),
    Mutant(
        "sweeps-look-at-all-shards",
        "The sweep of a runner rings for the shards that it holds, and for no others.",
        _sweeps_look_at_all_shards,
        (f"{_SWEEP}test_the_sweep_leaves_other_runners_shards_to_them[sqlite]",),
    ),
    Mutant(
        "due-mail-waits-for-the-sweep",
        "The runner rings for delayed mail when it is due.",
        _due_mail_waits_for_the_sweep,
        (f"{_SWEEP}test_delayed_mail_is_rung_for_when_it_is_due[sqlite]",),
    ),
    Mutant(
        "wakeups-never-expire",
        "A wake-up expires after three intervals.",
        _wakeups_never_expire,
        (f"{_BROKER}test_a_wakeup_is_transient_names_its_shard_and_expires",),
    ),
    Mutant(
        "queues-never-forget",
        "A shard's queue on RabbitMQ drops wake-ups by age and number.",
        _queues_never_forget,
        (f"{_BROKER}test_the_queue_of_a_shard_drops_wakeups_by_age_and_number",),
    ),
    Mutant(
        "nobody-counts-wakeups",
        "Where a broker keeps everything, senders leave a shard alone that has enough wake-ups.",
        _nobody_counts_wakeups,
        (f"{_BROKER}test_wakeups_that_nobody_consumes_are_bounded",),
    ),
    Mutant(
        "senders-never-rest",
        "A sender leaves a broker alone that it could not reach.",
        _senders_never_rest,
        (f"{_BROKER}test_a_sender_leaves_a_broker_alone_that_it_could_not_reach",),
    ),
    Mutant(
        "any-shard-is-drained",
        "A wake-up for a shard of a group that the worker does not host is dropped without a pool slot.",
        _any_shard_is_drained,
        (f"{_DISPATCHER}test_a_wakeup_for_a_shard_that_is_not_hosted_takes_no_slot",),
    ),
    Mutant(
        "thrown-away-drains-are-forgotten",
        "Drains that the worker forgot with its connection are asked for anew.",
        _thrown_away_drains_are_forgotten,
        (f"{_DISPATCHER}test_drains_that_went_with_the_connection_are_asked_for_anew",),
    ),
    Mutant(
        "drains-wait-for-no-slot",
        "Wake-ups that come while every slot is taken wait together for the next one.",
        _drains_wait_for_no_slot,
        (f"{_DISPATCHER}test_wakeups_of_a_busy_worker_wait_together_for_one_slot",),
    ),
]
