"""The drain: works off the due messages of one or several shards.

    attend -> claim -> run turns -> commit -> release -> claim ... nothing left -> forsake -> claim once more -> end

Looking once more after letting go of everything is what makes it safe for senders to leave wake-ups out.
Safety does not depend on any of this: a commit checks versions and pending messages by itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from entitycelery.address import Address, ShardId
from entitycelery.exceptions import StateConflict, TurnTimeout
from entitycelery.message import Ended, Mail, Mailbox, Retried, StoredState, Unknown
from entitycelery.runtime import report
from entitycelery.runtime import turn as turns
from entitycelery.runtime.batch import EntityRun, RunningTurn, is_asynchronous, uncommitted
from entitycelery.runtime.firing import Firing
from entitycelery.runtime.turn import Step
from entitycelery.runtime.turn_runner import TurnRunner
from entitycelery.storage.sessions import CommitResult, DrainSession
from entitycelery.telemetry import happened, span

if TYPE_CHECKING:
    from entitycelery.runtime.host import Host

log = logging.getLogger("entitycelery.drain")

LONG_TURN_S = 0.05
# A lone ask does not pay for the shard's attention; from so many messages on it is worth its price.
_STREAM = 8
_LOOKS_AFTER_A_STREAM = 5
_PAUSE_BETWEEN_LOOKS_S = 0.002
_LARGEST_COMMIT_BYTES = 32 * 1024 * 1024


class Drained(NamedTuple):
    """What a drain did.

    Turns committed; whether it stopped early, so that its shards must be drained again; and the shards with mail that
    was put off because this code does not know it.
    """

    turns: int
    more: bool
    unknown: frozenset[ShardId] = frozenset()


class Drain:
    """One run of the drain task over one or several shards."""

    def __init__(self, host: Host, shards: Sequence[ShardId], session: DrainSession, may_end_process: bool) -> None:
        self._host = host
        self._settings = host.settings
        self._shards = shards
        self._session = session
        self._may_end_process = may_end_process
        self._mutex = threading.RLock()
        self._attending = False
        self._runs: list[EntityRun] = []
        self._unstarted: list[EntityRun] = []
        self._first_done_s: float | None = None
        self._uncommitted_bytes = 0
        self._said_alive_s = time.monotonic()
        self._turns = 0
        self._unknown: set[ShardId] = set()
        self._async_done: queue.SimpleQueue[EntityRun] = queue.SimpleQueue()
        self._turn_runner = TurnRunner(
            host,
            self._mutex,
            shard_of=self._shard_of,
            open_connection=self.open_connection,
            rollback=session.rollback_turn,
        )

    def _shard_of(self, address: Address) -> ShardId:
        # By the group of the rows, not by the type: this process may not know the type, and another's code may have
        # another group for it.
        return self._host.envelope.shard_in(self._shards[0].group, address)

    def run(self) -> Drained:
        with span("entity.drain", shards=[str(shard) for shard in self._shards]) as seen:
            drained = self._drain()
            seen.add(turns=drained.turns, more=drained.more)
            return drained

    def _drain(self) -> Drained:
        deadline_s = time.monotonic() + self._settings.drain_budget_s
        batches = 0
        looks = 0
        while True:
            looked_s = self._host.monotonic_s()
            mailboxes = self._session.claim(self._settings.batch_size)
            if mailboxes:
                looks = 0
                if not self._attending and (batches or sum(len(box.mail) for box in mailboxes) >= _STREAM):
                    # There is a stream of mail: tell senders that they need not ring.
                    self._attend()
                self._run_batch(mailboxes, looked_s)
                batches += 1
            elif self._attending and looks < _LOOKS_AFTER_A_STREAM:
                # More of it is likely to come at once; a wake-up for each of its shards costs far more than a look.
                looks += 1
                time.sleep(_PAUSE_BETWEEN_LOOKS_S)
            elif not self._forsake():
                return self._drained(more=False)
            if time.monotonic() >= deadline_s:
                # Other shards, and the app's own tasks, want this pool slot too.
                self._forsake()
                return self._drained(more=True)

    def _drained(self, *, more: bool) -> Drained:
        return Drained(self._turns, more, frozenset(self._unknown))

    def _attend(self) -> None:
        with self._mutex:
            self._session.attend()
            self._attending = True

    def _forsake(self) -> bool:
        """Let go of the shard's attention; whether it was held."""
        with self._mutex:
            was, self._attending = self._attending, False
            if was:
                self._session.forsake()
            return was

    # The batch

    def _run_batch(self, mailboxes: list[Mailbox], claimed_since_s: float) -> None:
        with self._mutex:
            self._runs = [
                EntityRun(
                    mailbox,
                    self._host.kind(mailbox.address.type),
                    Firing(mailbox.address, mailbox.lock_key, self._shard_of, claimed_since_s, self._host.monotonic_s),
                    self._host.envelope.answer,
                )
                for mailbox in mailboxes
            ]
            self._unstarted = list(self._runs)
            self._first_done_s = None
        started = self._start_asynchronous()
        while (run := self._next_unstarted()) is not None:
            self._run_entity(run)
            self._commit_when_due()
        self._await_asynchronous(started)
        with self._mutex:
            self._commit(last=True)
            self._session.release([run.mailbox for run in self._runs])
            self._runs = []

    def _next_unstarted(self) -> EntityRun | None:
        with self._mutex:
            return self._unstarted.pop(0) if self._unstarted else None

    def _run_entity(self, run: EntityRun) -> None:
        while run.left and not run.lost:
            mail = run.left.popleft()
            self._run_turn(run, mail)
            self._commit_when_due()

    def _run_turn(self, run: EntityRun, mail: Mail) -> None:
        step, alone = self._turn_runner.run(run, mail)
        if alone:
            self._commit_alone(run, step)
        else:
            self._finished(run, step)

    def _finished(self, run: EntityRun, step: Step) -> None:
        with self._mutex:
            run.finished(step)
            self._first_done_s = self._first_done_s or time.monotonic()
            self._uncommitted_bytes += step.size
            if self._uncommitted_bytes >= _LARGEST_COMMIT_BYTES:
                # Due at once: what goes to the database in one statement has an end.
                self._first_done_s = -math.inf

    # Asynchronous turns: entities whose mail is all for `async def` handlers run beside the others

    def _start_asynchronous(self) -> list[Future[None]]:
        with self._mutex:
            asynchronous = [run for run in self._unstarted if is_asynchronous(run)]
            self._unstarted = [run for run in self._unstarted if run not in asynchronous]
        return [self._host.loop.submit(self._arun_entity(run)) for run in asynchronous]

    async def _arun_entity(self, run: EntityRun) -> None:
        try:
            while run.left and not run.lost:
                self._finished(run, await self._turn_runner.arun(run, run.left.popleft()))
                self._async_done.put(run)
        finally:
            self._async_done.put(run)

    def _await_asynchronous(self, started: list[Future[None]]) -> None:
        while not all(future.done() for future in started):
            with contextlib.suppress(queue.Empty):
                self._async_done.get(timeout=self._settings.batch_budget_s)
            self._commit_when_due()
        for future in started:
            future.result()

    # Commits

    def _commit_when_due(self) -> None:
        with self._mutex:
            done_s = self._first_done_s
            if done_s is not None and time.monotonic() - done_s >= self._settings.batch_budget_s:
                self._commit(last=False)

    def _commit(self, *, last: bool) -> None:
        """Commit finished turns; the mutex is held."""
        self._first_done_s = None
        self._uncommitted_bytes = 0
        finished = uncommitted(self._runs)
        if not finished:
            if last:
                # Mail that goes back unhandled must not look as if it were running here.
                self._session.keep_only((), ())
            return
        while finished:
            with span("entity.commit", entities=len(finished)) as seen:
                result = self._session.commit([run.commit() for run in finished], last=last)
                seen.add(turns=sum(len(run.steps) for run in finished), lost=len(result.lost))
            self._after_commit([step for run in finished for step in self._settled(run, result)])
            # What the store did not take comes again, as failures.
            finished = uncommitted(self._runs)

    def _settled(self, run: EntityRun, result: CommitResult) -> list[Step]:
        """The turns of an entity that are committed now."""
        if run.address in result.lost:
            self._lost(run)
        elif run.address in result.unstorable:
            run.fail_unstorable(result.unstorable[run.address])
        elif run.address in result.undone:
            run.fail_refused(result.refused, result.holders)
        else:
            return run.committed()
        return []

    def _lost(self, run: EntityRun) -> None:
        for step in run.steps:
            fields = report.described(step.turn.mail, self._shard_of)
            log.info("turn lost to another writer", extra=fields)
            happened("entity.turn.lost", **fields)
        run.give_up()

    def _commit_alone(self, run: EntityRun, step: Step) -> None:
        """Commit a turn that used its own transaction."""
        with self._mutex:
            run.running = None
            if run.lost:
                self._session.rollback_turn()
                return
            run.steps.append(step)
            result = self._session.commit_turn(run.commit())
            if result.refused:
                run.fail_refused(result.refused, result.holders)
                self._first_done_s = time.monotonic()
            elif result.error is not None:
                run.steps.pop()
                failed = turns.failed(run.kind, step.turn.mail, run.snapshot, result.error)
                run.finished(run.firing.conclude(failed, run.snapshot))
                self._first_done_s = time.monotonic()
            elif result.lost:
                self._lost(run)
            else:
                self._after_commit(run.committed())

    def _after_commit(self, steps: list[Step]) -> None:
        self._turns += len(steps)
        report.committed(steps, self._shard_of)
        ended = [step.turn for step in steps if isinstance(step.turn, Ended)]
        put_off = (step.turn for step in steps if isinstance(step.turn, Retried))
        self._unknown.update(self._shard_of(turn.mail.address) for turn in put_off if isinstance(turn.failure, Unknown))
        due = [m for turn in ended for m in turn.outgoing if not m.is_delayed]
        written = {self._host.envelope.shard_of_stored(message) for message in due}
        if self._attending:
            written.difference_update(self._shards)
        if written:
            self._host.bell.mail_stored(written)

    def open_connection(self, run: EntityRun, mail: Mail) -> Any:
        """Begin the transaction of a turn that asked for it; the finished turns are committed first."""
        with self._mutex:
            self._commit(last=False)
            if not run.lost:
                mailbox = run.mailbox
                base = run.base
                stored = StoredState(run.version, base.state_version, base.state, base.timers, base.signals)
                opened = None
                try:
                    opened = self._session.open_turn(
                        Mailbox(mailbox.address, mailbox.lock_key, stored, mailbox.fence, mailbox.mail), mail
                    )
                finally:
                    if opened is None:
                        # Not the handler's failure, not even when the database is away: the message runs again.
                        run.give_up()
                if opened is not None:
                    return opened
        raise StateConflict(
            f"another writer was faster with {mail.address}: this attempt does not count",
            address=str(mail.address),
        )

    # The watch over long turns

    def look_at_clock(self, now_s: float) -> None:
        """Called by the watch: a long turn must not hold back what is finished or not begun."""
        running = [run for run in self._runs if run.running is not None]
        long = [run for run in running if run.running and now_s - run.running.started_s >= LONG_TURN_S]
        if not long:
            return
        with self._mutex:
            # Where the turn's transaction is the only writer, nobody could take what is given back: it waits.
            if not self._session.must_not_write:
                self._commit_when_due()
                if self._unstarted or self._attending:
                    self._give_back()
                self._say_alive(now_s)
        for run in long:
            turn = run.running
            if turn is not None and now_s - turn.started_s >= self._timeout_s(run, turn.mail):
                self._time_out(run, turn)

    def _say_alive(self, now_s: float) -> None:
        if now_s - self._said_alive_s >= self._settings.refresh_interval_s:
            self._said_alive_s = now_s
            self._session.say_alive()

    def _give_back(self) -> None:
        """Let other pool slots serve the rest of the shard; the mutex is held."""
        given, self._unstarted = self._unstarted, []
        self._runs = [run for run in self._runs if run not in given]
        kept = [mail.id for run in self._runs if not run.lost for mail in self._noted(run)]
        self._session.keep_only(kept, [run.mailbox for run in given])
        self._forsake()
        self._host.bell.ring(self._shards)

    @staticmethod
    def _noted(run: EntityRun) -> list[Mail]:
        return [run.running.mail, *run.left] if run.running else list(run.left)

    def _timeout_s(self, run: EntityRun, mail: Mail) -> float:
        operation = run.kind.operations.get(mail.operation) if run.kind else None
        own_s = operation.options.turn_timeout_s if operation else None
        return own_s if own_s is not None else self._settings.turn_timeout_s

    def _time_out(self, run: EntityRun, running: RunningTurn) -> None:
        if running.timed_out is not None:
            return
        mail = running.mail
        sentence = f"the turn ran longer than {self._timeout_s(run, mail):g} s"
        error = running.timed_out = TurnTimeout(sentence, address=str(mail.address), message_id=mail.id)
        fields = report.described(mail, self._shard_of)
        log.error("turn timed out", extra=fields)
        happened("entity.turn.timeout", **fields)
        if running.task is not None:
            running.task.get_loop().call_soon_threadsafe(self._cancel, run, running)
            return
        with self._mutex:
            if run.running is not running or run.lost:
                return
            if running.turn.has_connection:
                # Its locks would hold up the commit of its own failure.
                self._session.rollback_turn(interrupt=True)
            self._commit(last=False)
            run.finished(run.firing.conclude(turns.failed(run.kind, mail, run.snapshot, error), run.snapshot))
            self._commit(last=not self._unstarted)
            run.give_up()
            self._session.release([run.mailbox])
        if self._may_end_process:
            # Nothing else stops a thread that runs user code; the pool starts another process.
            os.kill(os.getpid(), signal.SIGKILL)
        self._host.bell.ring(self._shards)

    @staticmethod
    def _cancel(run: EntityRun, running: RunningTurn) -> None:
        # On the event loop: the task goes on to the entity's next turn, which must not be hit.
        if run.running is running:
            running.task.cancel()
