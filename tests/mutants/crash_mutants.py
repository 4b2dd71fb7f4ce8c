"""Messages that end their process, and turns that take too long: what is said of them in "Turn and commit", broken."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.runtime.drain import Drain
from entitycelery.storage.sql import session as session_module
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.in_flight import InFlight
from entitycelery.storage.sql.mailbox import ClaimedMail
from entitycelery.storage.sql.session import SqlDrainSession
from tests.mutants.mutant import Mutant, around, no_op, reword


def _nothing_is_noted(patch: pytest.MonkeyPatch) -> None:
    def begin(real: Callable[..., None], self: InFlight, dialect: Any, floor: Any) -> None:
        real(self, dialect, floor)
        self.note_statement = dialect.sql("SELECT 1")

    around(patch, InFlight, "__init__", begin)


def _notes_stay(patch: pytest.MonkeyPatch) -> None:
    for way in ("commit", "commit_plain"):
        around(patch, Commits, way, lambda real, self, conn, commits, clear: real(self, conn, commits, None))


def _notes_go_with_the_first_commit(patch: pytest.MonkeyPatch) -> None:
    around(patch, SqlDrainSession, "commit", lambda real, self, commits, last: real(self, commits, last=True))


def _what_goes_back_stays_noted(patch: pytest.MonkeyPatch) -> None:
    def keep_only(real: Callable[..., None], self: SqlDrainSession, running: Collection[str], released: Any) -> None:
        self.release(released)

    around(patch, SqlDrainSession, "keep_only", keep_only)


def _crashes_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "SET crashes = crashes + 1, rev = rev + 1", "SET crashes = crashes")


def _crashes_are_counted_again(patch: pytest.MonkeyPatch) -> None:
    def count(real: Callable[..., None], self: InFlight, conn: Connection, token: str, suspects: Any) -> None:
        notes, self._others_locked = self._others_locked, self._dialect.sql("SELECT '', '[]' WHERE :token = ''")
        real(self, conn, token, suspects)
        self._others_locked = notes

    around(patch, InFlight, "count_crash", count)


def _a_count_is_no_change(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "SET crashes = crashes + 1, rev = rev + 1", "SET crashes = crashes + 1")


def _everybody_is_a_suspect(patch: pytest.MonkeyPatch) -> None:
    around(patch, InFlight, "suspects", lambda real, self, conn, token, ids: set(ids))


def _suspects_run_among_others(patch: pytest.MonkeyPatch) -> None:
    def runnable(real: Callable[..., Any], self: SqlDrainSession, conn: Connection, read: ClaimedMail) -> Any:
        mail, solo = real(self, conn, ClaimedMail(read.mail, read.fence, read.others_in_flight))
        return (mail, solo) if not mail or read.others_in_flight else (read.mail, False)

    patch.setattr(session_module, "_batch", lambda mail, limit: list(mail[:limit]))
    around(patch, SqlDrainSession, "_runnable", runnable)


def _a_lost_session_is_a_crash(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, InFlight, "withdraw")


def _notes_of_pending_messages_are_removed(patch: pytest.MonkeyPatch) -> None:
    around(patch, InFlight, "remove_done", lambda real, self, conn: self.purge(conn, -1e6))


def _turns_take_their_time(patch: pytest.MonkeyPatch) -> None:
    no_op(patch, Drain, "_time_out")


_NOTE = "tests/storage/test_claims.py::test_a_note_is_written_with_the_claim_and_cleared_with_the_last_commit[memory]"
_COUNTED = "tests/storage/test_crashes.py::test_a_crash_is_counted_before_the_message_runs_again[memory]"
_LATE = "tests/runtime/test_long_turns.py::test_a_turn_that_took_too_long_has_failed_though_it_ends_well"

CRASH_MUTANTS = [
    Mutant("nothing-is-noted", "A drain notes its batch before it runs.", _nothing_is_noted, (_NOTE,)),
    Mutant("notes-stay", "The last commit of a batch removes its note.", _notes_stay, (_NOTE,)),
    Mutant(
        "notes-go-with-the-first-commit",
        "No commit but the last of a batch removes its note.",
        _notes_go_with_the_first_commit,
        (_NOTE,),
    ),
    Mutant(
        "what-goes-back-stays-noted",
        "What a drain gives back is taken off its note first.",
        _what_goes_back_stays_noted,
        ("tests/storage/test_crashes.py::test_what_is_given_back_is_not_noted_any_more[memory]",),
    ),
    Mutant(
        "crashes-are-not-counted",
        "A crash is counted before its message runs again.",
        _crashes_are_not_counted,
        (_COUNTED,),
    ),
    Mutant(
        "crashes-are-counted-again",
        "A crash that is counted is taken off the dead drain's note.",
        _crashes_are_counted_again,
        (_COUNTED,),
    ),
    Mutant(
        "a-count-is-no-change",
        "A message whose crash is counted has another rev.",
        _a_count_is_no_change,
        ("tests/storage/test_crashes.py::test_a_counted_message_has_changed[memory]",),
    ),
    Mutant(
        "everybody-is-a-suspect",
        "Only messages on a dead drain's note are suspects.",
        _everybody_is_a_suspect,
        ("tests/storage/test_crashes.py::test_messages_that_were_not_noted_are_not_counted[memory]",),
    ),
    Mutant(
        "suspects-run-among-others",
        "A message that ended a process is claimed alone.",
        _suspects_run_among_others,
        ("tests/storage/test_claim_order.py::test_mail_that_ended_a_process_comes_alone_and_in_its_place[memory]",),
    ),
    Mutant(
        "a-lost-session-is-a-crash",
        "A drain that lost its session takes back what was counted because of it.",
        _a_lost_session_is_a_crash,
        ("tests/storage/test_crashes.py::test_a_drain_that_lost_only_its_session_takes_back_what_was_counted",),
    ),
    Mutant(
        "notes-of-pending-messages-are-removed",
        "Only notes of messages that are all done are cleaned up.",
        _notes_of_pending_messages_are_removed,
        ("tests/storage/test_crashes.py::test_a_note_of_messages_that_are_done_is_removed[memory]",),
    ),
    Mutant(
        "turns-take-their-time",
        "A turn that is longer than its time-out has failed.",
        _turns_take_their_time,
        (f"{_LATE}[sqlite]",),
    ),
]
