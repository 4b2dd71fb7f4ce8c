"""The commit of a batch: one transaction in one order of statements, and each entity wins or loses as a whole.

The order everywhere is: message by id, state by address, keys by name, outgoing mail by id. The row locks guard this
short transaction only; nothing is held while user code runs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from entitycelery.address import Address
from entitycelery.message import (
    REFUSALS,
    Answer,
    Appended,
    AppendOutcome,
    Ended,
    EntityCommit,
    Mail,
    NewMessage,
    Retried,
    Status,
)
from entitycelery.signals import NEVER_S
from entitycelery.storage.sessions import CommitResult
from entitycelery.storage.sql.dialects.base import Dialect
from entitycelery.storage.sql.failure import failure_json
from entitycelery.storage.sql.in_flight import InFlight
from entitycelery.storage.sql.message import Messages
from entitycelery.storage.sql.moment import Moments
from entitycelery.storage.sql.reply import Replies
from entitycelery.storage.sql.signal import SignalRows
from entitycelery.storage.sql.state import States, state_rows, state_steps
from entitycelery.storage.sql.statement import fetch, rollback, run, run_script, transaction
from entitycelery.storage.sql.unique_key import UniqueKeys

# PostgreSQL takes 8,000 with the id.
LARGEST_ANNOUNCED_BYTES = 2_000


class Refused(Exception):
    """Outgoing mail was refused, so the transaction must be undone; carries why, and because of whom, by message."""

    def __init__(self, appended: dict[NewMessage, Appended]) -> None:
        super().__init__("outgoing mail was refused")
        self.outcomes = {message: one.outcome for message, one in appended.items()}
        self.holders = {m: one.message_id for m, one in appended.items() if one.outcome is AppendOutcome.TAKEN}


class Commits:
    """Statements of the commit.

    The careful way locks and checks first, so that each loser is dropped alone. The plain way, for batches in which
    every message simply ends, deletes the messages and writes replies and states in one statement, which is the check;
    it either takes the whole batch or nothing.
    """

    def __init__(
        self,
        dialect: Dialect,
        messages: Messages,
        unique_keys: UniqueKeys,
        states: States,
        replies: Replies,
        in_flight: InFlight,
        moments: Moments,
        signals: SignalRows,
    ) -> None:
        self._dialect = dialect
        self._moments = moments
        self._signals = signals
        self._in_flight = in_flight
        self._messages = messages
        self._unique_keys = unique_keys
        self._states = states
        self._replies = replies
        self._pending = dialect.sql(
            f"SELECT id, rev FROM {{message}} WHERE {{among}} ORDER BY id {dialect.for_update}",
            among=dialect.any_of("id", "ids"),
        )
        self._announce = dialect.sql(dialect.announce)
        self._finish: tuple[str, ...] = ()
        if dialect.finish_batch:
            write_states = state_steps(dialect, "states", dialect.messages_are_gone)
            finish = dialect.sql(dialect.finish_batch.replace("{state_steps}", write_states))
            self._finish = (dialect.begin, finish)
        self._delete = dialect.sql("DELETE FROM {message} WHERE {among}", among=dialect.any_of("id", "ids"))
        self._retry = dialect.sql(
            "UPDATE {message} SET attempt = attempt + r.counted, rev = rev + 1, due_at = {due}, blocking = r.blocking, "
            "last_failure = {failure} FROM {rows} WHERE {among} AND message.id = r.id",
            among=dialect.any_of("message.id", "ids"),
            due=dialect.after("r.after_s"),
            failure=dialect.json("r.failure"),
            rows=dialect.rowset("rows", id="text", after_s="float", blocking="bool", counted="int", failure="text"),
        )
        self._park = dialect.sql(
            f"UPDATE {{message}} SET parked = true, rev = rev + 1, due_at = {dialect.after(str(NEVER_S))} "
            "WHERE {among}",
            among=dialect.any_of("id", "ids"),
        )
        self._bury = dialect.sql(
            "INSERT INTO {dead_letter} (id, seq, shard_group, shard, type, entity_id, operation, args, fingerprint, "
            "sender, attempt, crashes, reason, failure, sent_at, died_at) "
            "SELECT m.id, m.seq, m.shard_group, m.shard, m.type, m.entity_id, m.operation, m.args, m.fingerprint, "
            "m.sender, m.attempt + 1, m.crashes, r.reason, {failure}, m.sent_at, {now} "
            "FROM {rows} JOIN {message} AS m ON m.id = r.id WHERE {among}",
            among=dialect.any_of("m.id", "ids"),
            failure=dialect.json("r.failure"),
            now=dialect.now,
            rows=dialect.rowset("rows", id="text", reason="text", failure="text"),
        )

    def check(
        self, conn: Connection, commits: Sequence[EntityCommit], others: Sequence[str] = ()
    ) -> list[EntityCommit]:
        """Lock the messages and return the entities all of whose messages are pending as they were read.

        `others` are locked with them, in the same order.
        """
        expected = {turn.mail.id: turn.mail.rev for commit in commits for turn in commit.turns}
        rows = fetch(conn, self._pending, {"ids": self._dialect.values([*expected, *others])})
        alive = {message_id for message_id, rev in rows if expected.get(message_id) == rev}
        return [c for c in commits if all(turn.mail.id in alive for turn in c.turns)]

    def still_pending(self, conn: Connection, mail: Mail) -> bool:
        """Lock one message and tell whether it is pending as it was read."""
        rows = fetch(conn, self._pending, {"ids": self._dialect.values([mail.id])})
        return [tuple(row) for row in rows] == [(mail.id, mail.rev)]

    def is_plain(self, commits: Sequence[EntityCommit]) -> bool:
        """Whether the plain way can be tried."""
        return bool(self._finish) and all(
            isinstance(turn, Ended)
            and turn.status is not Status.DEAD
            and not (turn.disarmed or turn.parked or turn.answers)
            and all(message.unique is None and message.completes is None for message in turn.outgoing)
            for commit in commits
            for turn in commit.turns
        )

    def commit_plain(self, conn: Connection, commits: Sequence[EntityCommit], clear: str | None) -> bool:
        """Commit a plain batch and clear the note of drain `clear`; False, with nothing done, if an entity would lose.

        Raises:
            Refused: Outgoing mail was refused; nothing was done.
        """
        ended = [turn for commit in commits for turn in commit.turns if isinstance(turn, Ended)]
        outgoing = [message for turn in ended for message in turn.outgoing]
        finish = self._finish_parameters(commits, ended)
        ending, announced = self._ending(commits, clear)
        together = self._dialect.together
        try:
            if outgoing:
                run_script(conn, self._finish, finish, together=together)
                self._send(conn, outgoing)
                run_script(conn, ending, announced, together=together)
            else:
                # One round trip: where it fails, nothing after it is run.
                run_script(conn, [*self._finish, *ending], {**finish, **announced}, together=together)
        except BaseException as exc:
            rollback(conn)
            if isinstance(exc, DBAPIError) and self._dialect.is_overtaken(exc):
                return False
            raise
        return True

    def _finish_parameters(self, commits: Sequence[EntityCommit], ended: Sequence[Ended]) -> dict[str, Any]:
        rows = [
            {
                "id": turn.mail.id,
                "rev": turn.mail.rev,
                "status": turn.status.value,
                "result": turn.result,
                "failure": failure_json(turn.failure),
            }
            for turn in sorted(ended, key=lambda turn: turn.mail.id)
        ]
        return {
            **self._dialect.keyed_rows(rows),
            "messages": len(rows),
            "states": self._dialect.rows(state_rows(commits)),
            "entities": len(commits),
        }

    def commit(self, conn: Connection, commits: Sequence[EntityCommit], clear: str | None) -> CommitResult:
        """Commit a batch with care, each loser dropped alone, and clear the note of drain `clear`.

        Raises:
            Refused: Outgoing mail was refused; nothing was done.
        """
        with transaction(conn, self._dialect.begin):
            result = self.write(conn, commits)
            if clear is not None:
                self._in_flight.clear(conn, clear)
        self.announce(conn, [commit for commit in commits if commit.address not in result.lost], result.delayed)
        return result

    def announce(self, conn: Connection, commits: Sequence[EntityCommit], delayed: Sequence[str]) -> None:
        """Tell whoever waits for the replies, and runners of mail that is due soon, after the commit."""
        parameters = _announced(commits)
        if self._announce and parameters:
            fetch(conn, self._announce, parameters)
        self._moments.tell(conn, self._soon(commits) + list(delayed))

    def _soon(self, commits: Sequence[EntityCommit]) -> list[str]:
        turns = [turn for commit in commits for turn in commit.turns]
        sent = self._moments.soon(message for turn in turns if isinstance(turn, Ended) for message in turn.outgoing)
        put_off = [turn for turn in turns if isinstance(turn, Retried)]
        return sent + [turn.mail.id for turn in put_off if self._moments.is_soon(turn.after_s, None)]

    def _ending(self, commits: Sequence[EntityCommit], clear: str | None) -> tuple[list[str], dict[str, Any]]:
        statements, parameters = ["COMMIT"], _announced(commits)
        if self._announce and parameters:
            # After the commit: notifying transactions wait for each other, and a reply must be there to be read.
            statements.append(self._announce)
        if soon := self._soon(commits):
            telling, told = self._moments.telling(soon)
            statements.append(telling)
            parameters = {**parameters, **told}
        if clear is not None:
            statements.insert(0, self._in_flight.clear_statement)
            parameters = {**parameters, "token": clear}
        return statements, parameters

    def write(self, conn: Connection, commits: Sequence[EntityCommit]) -> CommitResult:
        """Everything after the check, in the caller's transaction.

        Raises:
            Refused: Outgoing mail of a winner was refused.
        """
        ending = {turn.mail.id for c in commits for turn in c.turns if isinstance(turn, Ended) and not turn.parked}
        outgoing = [m for c in commits for turn in c.turns if isinstance(turn, Ended) for m in turn.outgoing]
        joined = self._unique_keys.targets(conn, outgoing, ending)
        completing = [message.id for message in outgoing if message.completes is not None]
        alive = self.check(conn, commits, [*joined, *completing, *_answered(commits)])
        won = self._states.write(conn, alive) if alive else set()
        winners = [c for c in alive if c.address in won]
        ended = [turn for c in winners for turn in c.turns if isinstance(turn, Ended)]
        sent = [message for turn in ended for message in turn.outgoing]
        over = [turn.mail.id for turn in ended if not turn.parked]
        delayed = self._send(conn, sent, set(over), joined)
        self._retry_later(conn, [turn for c in winners for turn in c.turns if isinstance(turn, Retried)])
        if ended:
            self._bury_dead(conn, [turn for turn in ended if turn.status is Status.DEAD])
            self._replies.write(conn, [reply for turn in ended for reply in turn.replies])
            # No one waits for a timer: what was set anew leaves no reply, or an entity that does so all day many.
            done = [*over, *_answered(winners), *(one for c in winners for one in c.disarmed)]
            run(conn, self._delete, {"ids": self._dialect.values(done)})
            if parked := [turn.mail.id for turn in ended if turn.parked]:
                run(conn, self._park, {"ids": self._dialect.values(parked)})
        lost: frozenset[Address] = frozenset(c.address for c in commits) - won
        return CommitResult(lost=lost, refused={}, delayed=tuple(delayed))

    def _send(
        self,
        conn: Connection,
        outgoing: Sequence[NewMessage],
        ending: Collection[str] = (),
        locked: Collection[str] = (),
    ) -> list[str]:
        """Store outgoing mail; the ids of messages with a due moment that was not their sender's."""
        if not outgoing:
            return []
        nonce = os.urandom(8).hex()
        if any(message.unique is not None for message in outgoing):
            appended, delayed = self._unique_keys.append(conn, outgoing, nonce, ending=ending, locked=locked)
        else:
            outcomes = self._messages.append(conn, outgoing, nonce)
            appended, delayed = [Appended(outcome, m.id) for m, outcome in zip(outgoing, outcomes, strict=True)], []
        refused = {m: one for m, one in zip(outgoing, appended, strict=True) if one.outcome in REFUSALS}
        if refused:
            raise Refused(refused)
        self._signals.complete(conn, [message for message in outgoing if message.completes is not None], nonce)
        return delayed

    def _retry_later(self, conn: Connection, turns: Sequence[Retried]) -> None:
        if not turns:
            return
        rows = [
            {
                "id": turn.mail.id,
                "after_s": turn.after_s,
                "blocking": turn.blocking,
                "counted": int(turn.counts),
                "failure": failure_json(turn.failure),
            }
            for turn in turns
        ]
        run(conn, self._retry, self._dialect.keyed_rows(rows))

    def _bury_dead(self, conn: Connection, turns: Sequence[Ended]) -> None:
        if not turns:
            return
        rows = [
            {
                "id": turn.mail.id,
                "reason": turn.failure.reason if turn.failure else "",
                "failure": failure_json(turn.failure),
            }
            for turn in turns
        ]
        run(conn, self._bury, self._dialect.keyed_rows(rows))


def _announced(commits: Sequence[EntityCommit]) -> dict[str, Any]:
    turns = [turn for commit in commits for turn in commit.turns]
    replies = [one for turn in turns if isinstance(turn, Ended) for one in turn.replies if _is_channel(one.reply_to)]
    if not replies:
        return {}
    return {"channels": [one.reply_to for one in replies], "replied": [_said(one) for one in replies]}


def _said(answer: Answer) -> str:
    """What is announced of a reply: a small result at once, so that whoever waits need not read it."""
    result = answer.result if answer.status is Status.DONE else None
    if result is None or len(result) > LARGEST_ANNOUNCED_BYTES or not result.isascii():
        return answer.message_id
    return f"{answer.message_id}\n{result}"


def _answered(commits: Sequence[EntityCommit]) -> list[str]:
    """Earlier messages that these turns answer."""
    turns = [turn for commit in commits for turn in commit.turns]
    return [one.message_id for turn in turns if isinstance(turn, Ended) for one in turn.answers]


def _is_channel(name: str | None) -> bool:
    # PostgreSQL refuses others, and with them what stands in the same round trip.
    return name is not None and 0 < len(name) < 64 and name.isascii() and " " not in name
