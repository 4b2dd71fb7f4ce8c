"""When mail is due, broken, where tests/storage/test_protocol_moments.py does not do so: who tells, and who looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entitycelery.storage.sql import moment
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.moment import Moments
from entitycelery.worker.due_mail import DueMail
from tests.mutants.mutant import Mutant, around


def _senders_tell_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Moments, "is_soon", lambda *args: False)


def _senders_tell_of_everything(patch: pytest.MonkeyPatch) -> None:
    def begin(real: Callable[..., None], self: Moments, dialect: Any, horizon_s: float) -> None:
        real(self, dialect, 100 * horizon_s)

    around(patch, Moments, "__init__", begin)


def _senders_tell_before_their_commit(patch: pytest.MonkeyPatch) -> None:
    def append(real: Callable[..., Any], self: Messages, conn: Any, messages: Any, *args: Any, **options: Any) -> Any:
        stored = real(self, conn, messages, *args, **options)
        Moments(self._dialect, 2.0).tell(conn, [message.id for message in messages])
        return stored

    around(patch, Messages, "append", append)


def _callers_commit_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(moment, "_LONGEST_CALLER_S", 0.0)


def _runners_sleep_through(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DueMail, "_rest_s", lambda self, moments, began_s: self._complete_at_s - began_s)


def _runners_sleep_from_the_answer_on(patch: pytest.MonkeyPatch) -> None:
    def tick(real: Callable[[DueMail], float], self: DueMail) -> float:
        real(self)
        return self._rest_s(seen[-1], self._looked_s)

    seen: list[Any] = []

    def rest(real: Callable[..., float], self: DueMail, moments: Any, began_s: float) -> float:
        seen.append(moments)
        return real(self, moments, began_s)

    around(patch, DueMail, "_rest_s", rest)
    around(patch, DueMail, "tick", tick)


def _what_is_past_is_told_in_vain(patch: pytest.MonkeyPatch) -> None:
    def hear(real: Callable[..., None], self: DueMail, due_epoch_s: float) -> None:
        since_epoch_s = self._since_epoch_s
        real(self, due_epoch_s)
        self._since_epoch_s = since_epoch_s

    around(patch, DueMail, "hear", hear)


def _looks_never_go_back(patch: pytest.MonkeyPatch) -> None:
    def tick(real: Callable[[DueMail], float], self: DueMail) -> float:
        if self._looked_at:
            self._complete_at_s = 1e18
        return real(self)

    around(patch, DueMail, "tick", tick)


def _taken_shards_are_looked_at_like_others(patch: pytest.MonkeyPatch) -> None:
    def tick(real: Callable[[DueMail], float], self: DueMail) -> float:
        self._looked_at = self._hosting.held
        return real(self)

    around(patch, DueMail, "tick", tick)


def _listening_is_enough(patch: pytest.MonkeyPatch) -> None:
    def follow(_: Callable[..., None], self: DueMail, *, is_told: bool) -> None:
        self._is_told = is_told

    around(patch, DueMail, "follow", follow)


def _the_deaf_sleep_as_others_do(patch: pytest.MonkeyPatch) -> None:
    def follow(real: Callable[..., None], self: DueMail, *, is_told: bool) -> None:
        real(self, is_told=True)

    around(patch, DueMail, "follow", follow)


_LOOK = "tests/unit/test_due_mail.py::"
_TELL = "tests/storage/test_protocol_moments.py::"

DUE_MUTANTS = [
    Mutant(
        "senders-tell-nobody",
        "Whoever commits delayed mail or a retry that is due within the horizon tells the runners.",
        _senders_tell_nobody,
        (
            f"{_TELL}test_a_send_that_is_due_soon_is_told_of_and_a_later_one_is_not",
            f"{_TELL}test_a_reschedule_to_a_near_moment_is_told_of",
            f"{_TELL}test_mail_on_a_callers_connection_is_told_of_with_his_commit",
            f"{_TELL}test_a_turn_with_a_transaction_of_its_own_tells_after_it",
        ),
    ),
    Mutant(
        "senders-tell-of-everything",
        "Nobody is told of what is due later.",
        _senders_tell_of_everything,
        (f"{_TELL}test_a_send_that_is_due_soon_is_told_of_and_a_later_one_is_not",),
    ),
    Mutant(
        "senders-tell-before-their-commit",
        "A sender tells after its commit, in a statement of its own.",
        _senders_tell_before_their_commit,
        (f"{_TELL}test_a_send_is_told_of_after_its_commit_in_a_statement_of_its_own",),
    ),
    Mutant(
        "callers-commit-at-once",
        "A caller's transaction may take a minute longer.",
        _callers_commit_at_once,
        (f"{_TELL}test_mail_on_a_callers_connection_is_told_of_though_his_transaction_may_take_longer",),
    ),
    Mutant(
        "runners-sleep-through",
        "A runner sleeps until the next due moment of its shards.",
        _runners_sleep_through,
        (f"{_LOOK}test_a_runner_sleeps_until_the_next_moment_and_rings_then",),
    ),
    Mutant(
        "runners-sleep-from-the-answer-on",
        "A sleep counts from before the look.",
        _runners_sleep_from_the_answer_on,
        (f"{_LOOK}test_the_time_that_the_database_takes_to_answer_counts",),
    ),
    Mutant(
        "what-is-past-is-told-in-vain",
        "A look goes back to the earliest moment that was told since the last one.",
        _what_is_past_is_told_in_vain,
        (f"{_LOOK}test_mail_that_was_due_before_it_could_be_seen_is_rung_for_at_once",),
    ),
    Mutant(
        "looks-never-go-back",
        "Once in a refresh interval a runner looks at all that is due.",
        _looks_never_go_back,
        (f"{_LOOK}test_it_asks_for_everything_once_in_an_interval",),
    ),
    Mutant(
        "taken-shards-are-looked-at-like-others",
        "A shard that was taken is looked at from the beginning.",
        _taken_shards_are_looked_at_like_others,
        (f"{_LOOK}test_a_shard_that_was_taken_is_looked_at_from_the_beginning",),
    ),
    Mutant(
        "listening-is-enough",
        "A runner looks at everything after it has begun to listen.",
        _listening_is_enough,
        (f"{_LOOK}test_whoever_begins_to_listen_looks_at_everything_afterwards",),
    ),
    Mutant(
        "the-deaf-sleep-as-others-do",
        "A runner that is not told, or not any more, looks often.",
        _the_deaf_sleep_as_others_do,
        (f"{_LOOK}test_whoever_hears_nothing_more_looks_often_until_it_listens_again",),
    ),
]
