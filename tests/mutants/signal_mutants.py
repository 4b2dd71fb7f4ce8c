"""Signals, broken: who wins, what is over, and what answers whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entitycelery.runtime import continuing, firing
from entitycelery.signals import Signals
from entitycelery.storage.sql.signal import SignalRows
from tests.mutants.mutant import Mutant, around, reword

_SIGNALS = "tests/runtime/test_signals.py"


def _late_completions_count(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "IS NULL AND due_at > clock_timestamp() RETURNING id", "IS NULL RETURNING id")


def _completed_signals_are_completed_again(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "AND args ->> 'outcome' IS NULL AND due_at >", "AND due_at >")


def _a_time_out_that_failed_is_undone(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "operation = 'entity.signal' AND attempt = 0 AND", "operation = 'entity.signal' AND")


def _turns_complete_nothing(patch: pytest.MonkeyPatch) -> None:
    def complete(real: Callable[..., Any], self: SignalRows, conn: Any, messages: Any, nonce: str) -> Any:
        return real(self, conn, [one for one in messages if one.sender is None], nonce)

    around(patch, SignalRows, "complete", complete)


def _early_outcomes_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Signals, "keep_early", lambda self, event, at_epoch_s: None)


def _all_rounds_are_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Signals, "coming", Signals.current)


def _forgotten_names_begin_anew(patch: pytest.MonkeyPatch) -> None:
    def over(real: Callable[..., Any], self: Signals, name: str, at_epoch_s: float) -> Any:
        expected = real(self, name, at_epoch_s)
        self._read().base = 0
        return expected

    around(patch, Signals, "_over", over)


def _an_end_ends_nothing(patch: pytest.MonkeyPatch) -> None:
    for module in (firing, continuing):
        patch.setattr(module, "concluded", lambda step, before, now_epoch_s: step)


def _signals_live_apart_from_the_version(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "signals = CAST(l.signals AS jsonb)", "signals = s.signals")


def _answered_later_runs_again(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "WHERE id = :id AND NOT parked RETURNING", "WHERE id = :id RETURNING")


def _everybody_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Signals, "end", Signals._over)


def _a_signal_is_cancelled_like_a_message(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("entitycelery.storage.sql.change.SIGNAL", "nothing")


def _test(name: str) -> str:
    return f"{_SIGNALS}::{name}[postgresql]"


SIGNAL_MUTANTS = (
    Mutant(
        "late-completions-count",
        "A time-out is a completion by the clock.",
        _late_completions_count,
        (_test("test_a_signal_that_nobody_completes_times_out_once"),),
    ),
    Mutant(
        "completed-signals-are-completed-again",
        "The first completion wins, however long its turn takes to come.",
        _completed_signals_are_completed_again,
        (_test("test_a_completed_signal_that_has_to_wait_is_not_completed_again"),),
    ),
    Mutant(
        "a-time-out-that-failed-is-undone",
        "A time-out that is tried again stays one.",
        _a_time_out_that_failed_is_undone,
        (_test("test_a_time_out_that_is_tried_again_is_a_time_out_still"),),
    ),
    Mutant(
        "turns-complete-nothing",
        "A turn's completion finds the row that waits under its id.",
        _turns_complete_nothing,
        (
            _test("test_a_turn_completes_the_signal_of_another_entity_with_its_commit"),
            _test("test_an_entity_completes_its_own_signal"),
        ),
    ),
    Mutant(
        "early-outcomes-are-forgotten",
        "An outcome that nobody expects yet is kept with the entity.",
        _early_outcomes_are_forgotten,
        (_test("test_a_completion_waits_for_whoever_will_expect_it"),),
    ),
    Mutant(
        "all-rounds-are-one",
        "A name that is expected again has another id.",
        _all_rounds_are_one,
        (
            _test("test_a_name_can_be_expected_again_and_old_tokens_mean_the_old_round"),
            _test("test_an_entity_that_is_deleted_expects_nothing_and_its_successor_is_not_meant"),
        ),
    ),
    Mutant(
        "forgotten-names-begin-anew",
        "A name that was forgotten goes on with a number that was never used.",
        _forgotten_names_begin_anew,
        (_test("test_names_that_were_used_up_are_forgotten_and_their_ids_never_used_again"),),
    ),
    Mutant(
        "an-end-ends-nothing",
        "A signal is over, and whoever waits for its answer is told, however its turn ends.",
        _an_end_ends_nothing,
        (
            _test("test_a_signal_without_a_handler_for_its_end_is_a_dead_letter_with_the_reason"),
            _test("test_what_follows_is_tried_again_and_is_a_dead_letter_in_the_end_which_can_be_retried"),
        ),
    ),
    Mutant(
        "signals-live-apart-from-the-version",
        "What is expected is written with the state, under its version.",
        _signals_live_apart_from_the_version,
        (_test("test_a_name_can_be_expected_again_and_old_tokens_mean_the_old_round"),),
    ),
    Mutant(
        "answered-later-runs-again",
        "A message that a later turn answers is not run again.",
        _answered_later_runs_again,
        (_test("test_a_message_that_is_answered_later_does_not_run_again"),),
    ),
    Mutant(
        "everybody-answers",
        "Of several signals that may answer a message the first one does.",
        _everybody_answers,
        ("tests/unit/test_signals.py::test_whoever_was_answered_is_asked_no_more",),
    ),
    Mutant(
        "a-signal-is-cancelled-like-a-message",
        "The row of a signal ends by its turn alone.",
        _a_signal_is_cancelled_like_a_message,
        (_test("test_a_signal_that_waits_is_not_cancelled_like_a_message"),),
    ),
)
