"""Turn and commit, broken, where tests/storage/test_protocol_commit.py and test_protocol_order.py do not do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from sqlalchemy.engine import Connection

from entitycelery.message import Ended, EntityCommit, Mail, Mailbox
from entitycelery.runtime.batch import EntityRun
from entitycelery.runtime.drain import Drain
from entitycelery.runtime.turn import Step
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql import own_transaction
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.dialects import session_arguments
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.own_transaction import OwnTransaction
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.state import NEVER_STORED
from entitycelery.storage.sql.statement import run
from tests.mutants.mutant import Mutant, around, no_op, reword

# Who wins


def _the_loser_is_a_message(patch: pytest.MonkeyPatch) -> None:
    def check(real: Callable[..., Any], self: Commits, conn: Connection, commits: Sequence[EntityCommit]) -> Any:
        each = [msgspec.structs.replace(c, turns=(turn,)) for c in commits for turn in c.turns]
        alive = {turn for c in real(self, conn, each) for turn in c.turns}
        kept = [(c, tuple(turn for turn in c.turns if turn in alive)) for c in commits]
        return [msgspec.structs.replace(c, turns=turns) for c, turns in kept if turns]

    around(patch, Commits, "check", check)


def _the_careful_way_checks_no_message(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Commits, "check", lambda self, conn, commits: list(commits))


def _the_plain_way_checks_no_message(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "WHEN (SELECT count(*) FROM gone) = :messages AND", "WHEN")
    patch.setattr(PostgreSQL, "messages_are_gone", "true")


def _the_plain_way_checks_no_state(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "AND (SELECT count(*) FROM won) = :entities THEN", "THEN")


def _retries_keep_their_rev(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "attempt + r.counted, rev = rev + 1", "attempt + r.counted")


def _losers_send(patch: pytest.MonkeyPatch) -> None:
    def write(real: Callable[..., CommitResult], self: Commits, conn: Connection, commits: Any) -> CommitResult:
        result = real(self, conn, commits)
        lost = [turn for c in commits if c.address in result.lost for turn in c.turns if isinstance(turn, Ended)]
        self._send(conn, [message for turn in lost for message in turn.outgoing])
        return result

    around(patch, Commits, "write", write)


# What is sent


def _refused_turns_keep_what_followed(patch: pytest.MonkeyPatch) -> None:
    def fail_refused(real: Callable[..., None], self: EntityRun, refused: Any) -> None:
        steps, left = list(self.steps), list(self.left)
        real(self, refused)
        if len(self.steps) < len(steps):
            self.steps += steps[len(self.steps) :]
            self.left.extend(left)

    around(patch, EntityRun, "fail_refused", fail_refused)


def _refused_turns_keep_their_state(patch: pytest.MonkeyPatch) -> None:
    def fail_refused(real: Callable[..., None], self: EntityRun, refused: Any) -> None:
        steps = list(self.steps)
        real(self, refused)
        last = len(self.steps) - 1
        self.steps[last] = Step(self.steps[last].turn, steps[last].after)

    around(patch, EntityRun, "fail_refused", fail_refused)


def _turns_that_run_meanwhile_count(patch: pytest.MonkeyPatch) -> None:
    def committed(real: Callable[..., Any], self: EntityRun) -> Any:
        self._doomed = False
        return real(self)

    around(patch, EntityRun, "committed", committed)


def _outgoing_mail_is_turned_round(patch: pytest.MonkeyPatch) -> None:
    around(patch, Commits, "_send", lambda real, self, conn, outgoing: real(self, conn, outgoing[::-1]))


def _a_blocking_retry_lets_its_batch_pass(patch: pytest.MonkeyPatch) -> None:
    def finished(real: Callable[..., None], self: EntityRun, step: Step) -> None:
        left = list(self.left)
        real(self, step)
        self.left.clear()
        self.left.extend(left)

    around(patch, EntityRun, "finished", finished)


# Commits that meet others


def _commits_wait_for_ever(patch: pytest.MonkeyPatch) -> None:
    settings = session_arguments.SERVER_SETTINGS
    # For ever would be too long, and nothing ends a wait of the driver's.
    patch.setitem(settings, "drain", settings["drain"].replace("lock_timeout=1000", "statement_timeout=2000"))


def _a_blocked_commit_gives_all_up(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: SqlDrainSession, conn: Connection, commits: Sequence[EntityCommit], *, last: bool) -> Any:
        return CommitResult(lost=frozenset(commit.address for commit in commits), refused={})

    patch.setattr(SqlDrainSession, "_commit_one_by_one", give_up)


def _replies_are_announced_first(patch: pytest.MonkeyPatch) -> None:
    def commit(real: Callable[..., Any], self: Commits, conn: Connection, commits: Any, clear: str | None) -> Any:
        self.announce(conn, commits)
        return real(self, conn, commits, clear)

    for way in ("commit", "commit_plain"):
        around(patch, Commits, way, commit)


# Turns with a transaction of their own


def _own_transactions_check_no_message(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Commits, "still_pending", lambda self, conn, mail: True)


def _own_transactions_check_no_state(patch: pytest.MonkeyPatch) -> None:
    def open_it(real: Callable[..., Any], self: OwnTransaction, mailbox: Mailbox, mail: Mail) -> Any:
        with self._engine.connect() as conn:
            stored = self._states.read(conn, [mailbox.address]).get(mailbox.address, NEVER_STORED)
        return real(self, msgspec.structs.replace(mailbox, stored=stored), mail)

    around(patch, OwnTransaction, "open", open_it)


def _users_may_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(own_transaction, "event", SimpleNamespace(listen=lambda *_: None, remove=lambda *_: None))


def _the_users_sql_is_committed_first(patch: pytest.MonkeyPatch) -> None:
    def write(real: Callable[..., Any], self: Commits, conn: Connection, commits: Sequence[EntityCommit]) -> Any:
        run(conn, "COMMIT")
        run(conn, self._dialect.begin)
        return real(self, conn, commits)

    around(patch, Commits, "write", write)


def _what_a_commit_refuses_ends_the_drain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(own_transaction, "DBAPIError", own_transaction.Refused)


def _finished_turns_wait_for_own_transactions(patch: pytest.MonkeyPatch) -> None:
    def open_connection(real: Callable[..., Any], self: Drain, entity: EntityRun, mail: Mail) -> Any:
        no_op(patch, self, "_commit")
        try:
            return real(self, entity, mail)
        finally:
            del self._commit

    around(patch, Drain, "open_connection", open_connection)


_OWN = "tests/storage/test_own_transaction.py::"
_LOST_ALREADY = f"{_OWN}test_a_turn_that_has_lost_already_is_not_opened"
_COMMIT = "tests/storage/test_commit.py::"
_REFUSED = "tests/runtime/test_turn.py::test_refused_mail_fails_its_turn_and_the_turns_behind_it_run_again[sqlite]"
_BEHIND_A_CALLER = (
    "tests/storage/test_protocol_commit.py::test_a_commit_behind_a_callers_open_send_gives_up_that_entity_alone"
)

TURN_MUTANTS = [
    Mutant(
        "the-loser-is-a-message",
        "The loser is an entity, with all its turns of the batch.",
        _the_loser_is_a_message,
        (
            f"{_COMMIT}test_the_loser_is_an_entity_with_all_its_turns[memory]",
            f"{_COMMIT}test_the_loser_is_an_entity_with_all_its_turns[postgresql]",
        ),
    ),
    Mutant(
        "the-careful-way-checks-no-message",
        "The careful commit asks whether each message is pending as it was read.",
        _the_careful_way_checks_no_message,
        (f"{_COMMIT}test_a_commit_of_a_message_that_is_gone_loses[memory]",),
    ),
    Mutant(
        "the-plain-way-checks-no-message",
        "The plain commit fails unless it deleted every message.",
        _the_plain_way_checks_no_message,
        (f"{_COMMIT}test_a_commit_of_a_message_that_is_gone_loses[postgresql]",),
    ),
    Mutant(
        "the-plain-way-checks-no-state",
        "The plain commit fails unless it wrote every state.",
        _the_plain_way_checks_no_state,
        (f"{_COMMIT}test_a_commit_from_an_older_version_loses[postgresql]",),
    ),
    Mutant(
        "retries-keep-their-rev",
        "A retry has another rev.",
        _retries_keep_their_rev,
        (f"{_COMMIT}test_a_retry_sets_due_time_attempt_and_rev_and_keeps_the_failure[memory]",),
    ),
    Mutant(
        "losers-send",
        "The outgoing mail of a loser is dropped with it.",
        _losers_send,
        (f"{_COMMIT}test_a_losers_outgoing_mail_and_dead_letters_go_with_it[memory-done]",),
    ),
    Mutant(
        "refused-turns-keep-what-followed",
        "Turns behind one whose mail was refused run again.",
        _refused_turns_keep_what_followed,
        (_REFUSED,),
    ),
    Mutant(
        "refused-turns-keep-their-state",
        "A turn whose mail was refused changes no state.",
        _refused_turns_keep_their_state,
        (_REFUSED,),
    ),
    Mutant(
        "turns-that-run-meanwhile-count",
        "A turn that runs while the one before it is refused runs again.",
        _turns_that_run_meanwhile_count,
        ("tests/runtime/test_turn.py::test_a_turn_that_runs_while_the_one_before_it_is_refused_runs_again[sqlite]",),
    ),
    Mutant(
        "outgoing-mail-is-turned-round",
        "What the turns of one entity send comes in the order of the turns.",
        _outgoing_mail_is_turned_round,
        (
            "tests/storage/test_outgoing_order.py::"
            "test_messages_that_turns_of_one_batch_send_keep_the_order_of_the_turns[memory]",
        ),
    ),
    Mutant(
        "a-blocking-retry-lets-its-batch-pass",
        "Behind a retry that blocks, nothing else of the batch runs for its entity.",
        _a_blocking_retry_lets_its_batch_pass,
        (
            "tests/runtime/test_failing.py::"
            "test_where_failure_blocks_a_waiting_retry_holds_the_others_back[sqlite-False]",
        ),
    ),
    Mutant(
        "commits-wait-for-ever",
        "A commit waits for a lock for a second at most.",
        _commits_wait_for_ever,
        (_BEHIND_A_CALLER,),
    ),
    Mutant(
        "a-blocked-commit-gives-all-up",
        "A commit that is blocked twice goes entity by entity.",
        _a_blocked_commit_gives_all_up,
        (_BEHIND_A_CALLER,),
    ),
    Mutant(
        "replies-are-announced-first",
        "A reply is announced after its commit.",
        _replies_are_announced_first,
        (
            "tests/storage/test_waiting_for_replies.py::test_an_announcement_follows_the_commit[Commits]",
            "tests/storage/test_waiting_for_replies.py::test_an_announcement_follows_the_commit[Careful]",
        ),
    ),
    Mutant(
        "own-transactions-check-no-message",
        "A turn's own transaction begins only if its message is pending as it was read.",
        _own_transactions_check_no_message,
        (
            _LOST_ALREADY + "[sqlite-gone]",
            _LOST_ALREADY + "[postgresql-changed]",
        ),
    ),
    Mutant(
        "own-transactions-check-no-state",
        "A turn's own transaction begins only if the state is as it was read.",
        _own_transactions_check_no_state,
        (f"{_LOST_ALREADY}[sqlite-overtaken]",),
    ),
    Mutant(
        "users-may-commit",
        "Commit and rollback on a turn's connection raise.",
        _users_may_commit,
        (
            f"{_OWN}test_the_user_cannot_end_the_transaction[sqlite-commit]",
            f"{_OWN}test_the_user_cannot_end_the_transaction[sqlite-rollback]",
        ),
    ),
    Mutant(
        "the-users-sql-is-committed-first",
        "The user's SQL and the turn are one commit.",
        _the_users_sql_is_committed_first,
        (f"{_OWN}test_a_refused_message_undoes_the_users_sql[sqlite]",),
    ),
    Mutant(
        "what-a-commit-refuses-ends-the-drain",
        "What the database refuses of a turn's own transaction, at its commit too, fails this turn alone.",
        _what_a_commit_refuses_ends_the_drain,
        (
            f"{_OWN}test_a_deferred_constraint_speaks_up_before_the_reply[sqlite]",
            f"{_OWN}test_a_deferred_constraint_speaks_up_before_the_reply[postgresql]",
        ),
    ),
    Mutant(
        "finished-turns-wait-for-own-transactions",
        "The finished turns are committed before a turn's own transaction begins.",
        _finished_turns_wait_for_own_transactions,
        ("tests/runtime/test_turn_connection.py::test_finished_turns_are_committed_before_the_transaction[sqlite]",),
    ),
]
