"""Workflows, broken: what is remembered, what is withdrawn, and what is taken for done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from entitycelery.durable.branches import Branches
from entitycelery.durable.cursor import Cursor
from entitycelery.durable.journal import Bounds, Entry, Journal, Suspended
from entitycelery.durable.retrying import position_of_retry
from entitycelery.durable.steps import Steps
from tests.mutants.mutant import Mutant, around, replace_everywhere

_BODIES = "tests/workflows/test_bodies.py"
_BRANCHES = "tests/workflows/test_branches.py"


def _steps_share_a_turn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Steps, "_has_stepped", property(lambda self: False, lambda self, value: None), raising=False)


def _divergence_may_be_swallowed(patch: pytest.MonkeyPatch) -> None:
    def diverged(real: Callable[..., Any], self: Bounds, sentence: str) -> Any:
        exc = real(self, sentence)
        self.divergence = None
        return exc

    around(patch, Bounds, "diverged", diverged)


def _an_end_may_come_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Journal, "end", lambda self: None)


def _all_runs_are_one(patch: pytest.MonkeyPatch) -> None:
    around(
        patch, Bounds, "__init__", lambda real, self, entries, most, address, run=0: real(self, entries, most, address)
    )


def _winners_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    def finish(real: Callable[..., Any], self: Entry, *given: Any, **named: Any) -> None:
        real(self, *given, **named)
        if self.kind == "race":
            self.value = None

    around(patch, Entry, "finish", finish)


def _losers_wait_on(patch: pytest.MonkeyPatch) -> None:
    def wait(self: Cursor, *_: Any) -> None:
        raise Suspended

    patch.setattr(Cursor, "wait", wait)


def _losers_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    async def run(real: Callable[..., Any], self: Branches, branch: Any, journal: Journal) -> Any:
        return None if journal.is_over else await real(self, branch, journal)

    around(patch, Branches, "_run", run)


def _what_was_undone_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    def position(address: str, status: str, journal: Any, from_step: int | None) -> int:
        innocent = [msgspec.structs.replace(entry, undoes=None) for entry in journal]
        return position_of_retry(address, status, innocent, from_step)

    replace_everywhere(patch, position_of_retry, position)


WORKFLOW_MUTANTS = (
    Mutant(
        "steps-share-a-turn",
        "What a step gave is committed before the next one runs.",
        _steps_share_a_turn,
        (f"{_BODIES}::test_a_crash_repeats_one_step_at_most",),
    ),
    Mutant(
        "divergence-may-be-swallowed",
        "A body that differs from its journal is not committed, whatever it catches.",
        _divergence_may_be_swallowed,
        (f"{_BODIES}::test_a_body_that_swallows_its_own_divergence_and_waits_is_not_committed",),
    ),
    Mutant(
        "an-end-may-come-early",
        "A body ends where its journal does.",
        _an_end_may_come_early,
        (f"{_BODIES}::test_a_body_that_ends_before_its_journal_does_is_found_out",),
    ),
    Mutant(
        "all-runs-are-one",
        "What a run waits for and does outside is told apart from what earlier runs did.",
        _all_runs_are_one,
        (
            f"{_BODIES}::test_a_failed_workflow_is_retried_from_the_call_that_failed",
            f"{_BRANCHES}::test_what_began_anew_does_not_get_old_answers",
        ),
    ),
    Mutant(
        "winners-are-not-kept",
        "A race keeps its winner.",
        _winners_are_not_kept,
        (f"{_BRANCHES}::test_a_branch_that_has_lost_does_nothing_more",),
    ),
    Mutant(
        "losers-wait-on",
        "What the losers of a race wait for is withdrawn.",
        _losers_wait_on,
        (f"{_BRANCHES}::test_a_race_has_one_winner_and_the_others_wait_no_more",),
    ),
    Mutant(
        "losers-are-forgotten",
        "What the losers of a race did is compensated with the rest.",
        _losers_are_forgotten,
        (f"{_BRANCHES}::test_what_a_losing_branch_did_is_compensated",),
    ),
    Mutant(
        "what-was-undone-counts-as-done",
        "A retry takes nothing as done that was undone.",
        _what_was_undone_counts_as_done,
        (f"{_BODIES}::test_what_was_undone_is_done_again_by_a_retry",),
    ),
)
