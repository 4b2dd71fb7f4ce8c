"""Singletons, broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Connection

from entitycelery.sharding import succession
from entitycelery.sharding.succession import Here, Part, Phase, Step
from entitycelery.singleton import Seat
from entitycelery.storage.sql.dialects.singleton_locks import SessionSingletonLocks
from entitycelery.worker.loop_seat import LoopSeat, Moment
from tests.mutants.mutant import Mutant, around, reword


def _successors_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    def taken(real: Callable[..., Part], part: Part, seat: Seat, epoch: int, now_s: float) -> Part:
        return msgspec.structs.replace(real(part, seat, epoch, now_s), may_run_at_s=now_s)

    around(patch, succession, "taken", taken)


def _loops_follow_their_shard_at_once(patch: pytest.MonkeyPatch) -> None:
    def next_step(real: Callable[..., Step | None], part: Part, seat: Seat, here: Here, *more: Any) -> Step | None:
        if part.epoch is not None and part.phase is Phase.RUNNING and not here.has_shard:
            return Step.STOP
        return real(part, seat, here, *more)

    around(patch, succession, "next_step", next_step)


def _whoever_asks_need_not_have_loaded(patch: pytest.MonkeyPatch) -> None:
    def next_step(real: Callable[..., Step | None], part: Part, seat: Seat, here: Here, *more: Any) -> Step | None:
        if part.epoch is None and part.phase is Phase.NONE and here.has_shard and not seat.is_free:
            return Step.ASK
        return real(part, seat, here, *more)

    around(patch, succession, "next_step", next_step)


def _answers_count_from_their_coming(patch: pytest.MonkeyPatch) -> None:
    def confirm(real: Callable[..., None], self: LoopSeat, seat: Seat, moment: Moment) -> None:
        real(self, seat, msgspec.structs.replace(moment, asked_s=self._now_s()))

    around(patch, LoopSeat, "confirm", confirm)


def _late_answers_count(patch: pytest.MonkeyPatch) -> None:
    def confirm(real: Callable[..., None], self: LoopSeat, seat: Seat, moment: Moment) -> None:
        self._confirmed_s = self._now_s()
        real(self, seat, moment)

    around(patch, LoopSeat, "confirm", confirm)


def _locks_are_taken_twice(patch: pytest.MonkeyPatch) -> None:
    def lock(real: Callable[..., bool], self: SessionSingletonLocks, conn: Connection, number: int) -> bool:
        self._held.discard(number)
        return real(self, conn, number)

    around(patch, SessionSingletonLocks, "lock", lock)


def _rows_have_two_holders(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "(holder IS NULL OR expires_at IS NULL OR", "(true OR")


def _starts_draw_no_number(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "SET epoch = epoch + 1, pid =", "SET pid =")


RULES = "tests/unit/test_succession.py"
SEATS = "tests/unit/test_loop_seat.py"
STORED = "tests/storage/test_singletons.py"

SINGLETON_MUTANTS = (
    Mutant(
        "successors-do-not-wait",
        "A singleton that was not handed over is held, before it runs, for as long as its last holder's loop may run.",
        _successors_do_not_wait,
        (
            f"{RULES}::test_a_lock_that_its_holder_has_lost_is_held_for_as_long_as_that_one_may_run",
            f"{RULES}::test_a_wait_for_a_predecessor_is_not_shortened_by_losing_the_lock_meanwhile",
        ),
    ),
    Mutant(
        "loops-follow-their-shard-at-once",
        "A loop is kept until whoever is to have it asks.",
        _loops_follow_their_shard_at_once,
        (f"{RULES}::test_a_holder_that_has_no_shard_keeps_it_until_somebody_asks",),
    ),
    Mutant(
        "whoever-asks-need-not-have-loaded",
        "Whoever is to have a loop loads it first and asks then.",
        _whoever_asks_need_not_have_loaded,
        (f"{RULES}::test_whoever_is_to_have_it_loads_first_and_asks_then",),
    ),
    Mutant(
        "answers-count-from-their-coming",
        "A confirmation is as old as its question.",
        _answers_count_from_their_coming,
        (f"{SEATS}::test_a_process_may_run_for_as_long_as_the_question_says_and_not_the_answer",),
    ),
    Mutant(
        "late-answers-count",
        "An answer that comes when the loop has ended itself is a loss.",
        _late_answers_count,
        (f"{SEATS}::test_what_was_not_confirmed_in_time_is_lost_though_the_answer_came",),
    ),
    Mutant(
        "locks-of-singletons-are-taken-twice",
        "A session that takes a singleton again releases it once.",
        _locks_are_taken_twice,
        (f"{STORED}::test_a_session_that_takes_twice_gives_once",),
    ),
    Mutant(
        "rows-of-singletons-have-two-holders",
        "Where rows decide, a singleton is taken only when its holder's time is over.",
        _rows_have_two_holders,
        (f"{STORED}::test_one_of_two_has_it[sqlite]",),
    ),
    Mutant(
        "starts-draw-no-number",
        "Every start of a loop draws a larger fence.",
        _starts_draw_no_number,
        (f"{STORED}::test_every_take_and_every_start_draws_a_larger_number[sqlite]",),
    ),
)
