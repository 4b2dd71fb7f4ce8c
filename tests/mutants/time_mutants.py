"""Timers and ticks, broken: what replaces what, what goes on, and what fires once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entitycelery.message import EntityCommit
from entitycelery.runtime.batch import EntityRun
from entitycelery.runtime.firing import Firing
from entitycelery.scheduler.definition import TickMail
from entitycelery.timers import Armed
from tests.mutants.mutant import Mutant, around, reword

_TIMERS = "tests/runtime/test_timers.py"
_SCHEDULES = "tests/client/test_schedules.py"


def _messages_of_replaced_timers_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EntityCommit, "disarmed", property(lambda self: []))


def _claimed_timers_cannot_be_cancelled(patch: pytest.MonkeyPatch) -> None:
    def finished(real: Callable[..., None], self: EntityRun, step: Any) -> None:
        left = list(self.left)
        real(self, step)
        self.left.clear()
        self.left.extend(left)

    around(patch, EntityRun, "finished", finished)


def _failures_end_an_interval(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Firing, "conclude", lambda self, step, before: step)


def _timers_live_apart_from_the_version(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "timers = CAST(l.timers AS jsonb)", "timers = s.timers")
    reword(patch, "timers = excluded.timers", "timers = state.timers")


def _intervals_make_up_for_every_moment(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Armed, "next_due_epoch_s", lambda self, now_epoch_s: self.every_s and self.due_epoch_s + self.every_s)


def _ticks_have_no_key(patch: pytest.MonkeyPatch) -> None:
    around(patch, TickMail, "message", lambda real, self, *args, once=True: real(self, *args, once=False))


def _the_row_stays(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "SET tick = r.tick, tick_at", "SET tick = schedule.tick, tick_at")


TIME_MUTANTS = (
    Mutant(
        "messages-of-replaced-timers-stay",
        "A timer that is set again or cancelled takes its message with it.",
        _messages_of_replaced_timers_stay,
        (f"{_TIMERS}::test_a_timer_that_is_set_again_replaces_the_earlier_one_and_leaves_no_row_behind[postgresql]",),
    ),
    Mutant(
        "claimed-timers-cannot-be-cancelled",
        "A timer that is cancelled does not fire, though its message was claimed with the turn that cancels it.",
        _claimed_timers_cannot_be_cancelled,
        (f"{_TIMERS}::test_a_cancellation_that_is_claimed_together_with_the_timer_wins[postgresql]",),
    ),
    Mutant(
        "failures-end-an-interval",
        "An interval goes on whatever becomes of its handler's turn.",
        _failures_end_an_interval,
        (f"{_TIMERS}::test_an_interval_goes_on_when_its_handler_fails_and_while_it_is_retried_waits[postgresql]",),
    ),
    Mutant(
        "timers-live-apart-from-the-version",
        "Timers are written with the state, under its version.",
        _timers_live_apart_from_the_version,
        (f"{_TIMERS}::test_a_timer_that_is_set_again_replaces_the_earlier_one_and_leaves_no_row_behind[postgresql]",),
    ),
    Mutant(
        "intervals-make-up-for-every-moment",
        "One firing makes up for all moments of an interval that were missed.",
        _intervals_make_up_for_every_moment,
        (f"{_TIMERS}::test_an_interval_fires_again_and_again_and_one_firing_makes_up_for_those_missed[postgresql]",),
    ),
    Mutant(
        "ticks-have-no-key",
        "A tick is a message with a key: stored a second time it is no second message.",
        _ticks_have_no_key,
        (f"{_SCHEDULES}::test_a_scheduler_that_fires_a_tick_of_before_does_not_fire_it_again[postgresql]",),
    ),
    Mutant(
        "the-row-stays",
        "The row moves on in the transaction that stores the tick.",
        _the_row_stays,
        (f"{_SCHEDULES}::test_a_single_instant_fires_once_and_the_schedule_is_finished[postgresql]",),
    ),
)
