"""Runs turns: calls the handler and decides how the turn ends. What is committed when is the drain's business."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from entitycelery.address import Address, ShardId
from entitycelery.context import Turn
from entitycelery.exceptions import EntityError
from entitycelery.message import Mail
from entitycelery.runtime import turn as turns
from entitycelery.runtime.batch import EntityRun, RunningTurn
from entitycelery.runtime.continuing import continued
from entitycelery.runtime.put_off import is_unknown, put_off
from entitycelery.runtime.report import TurnSpan, outcome
from entitycelery.runtime.turn import Prepared, Step
from entitycelery.runtime.turn_drain import TurnDrain
from entitycelery.signals import SIGNAL, Signals
from entitycelery.timers import Timers

if TYPE_CHECKING:
    from entitycelery.runtime.host import Host


class Ran(NamedTuple):
    """What a turn came to, and whether it did so in a transaction of its own, with which it must commit alone."""

    step: Step
    alone: bool = False


class TurnRunner:
    """Runs the turns of one drain, on its thread or on the event loop."""

    def __init__(
        self,
        host: Host,
        mutex: threading.RLock,
        *,
        shard_of: Callable[[Address], ShardId],
        open_connection: Callable[[EntityRun, Mail], Any],
        rollback: Callable[[], None],
    ) -> None:
        self._host = host
        self._max_crashes = host.settings.max_crashes
        self._deploy_window_s = host.settings.deploy_window_s
        self._limits = host.envelope.limits
        self._mutex = mutex
        self._shard_of = shard_of
        self._open_connection = open_connection
        self._rollback = rollback

    def run(self, run: EntityRun, mail: Mail) -> Ran:
        """A turn on this thread."""
        with TurnSpan(mail, self._shard_of) as span:
            ran = self._run(run, mail)
            span.add(outcome=outcome(ran.step))
            return ran

    async def arun(self, run: EntityRun, mail: Mail) -> Step:
        """A turn on the event loop, within a task of its entity."""
        with TurnSpan(mail, self._shard_of) as span:
            step = await self._arun(run, mail)
            span.add(outcome=outcome(step))
            return step

    def _run(self, run: EntityRun, mail: Mail) -> Ran:
        before = run.snapshot
        ended = turns.refused_outright(mail, self._max_crashes)
        if ended is not None:
            return Ran(run.firing.conclude(Step(ended, before), before))
        turn = self._new_turn(run, mail)
        try:
            arrived = self._arrived(run, mail)
            if isinstance(arrived, Step):
                return Ran(arrived)
            mail = arrived
            prepared = self._prepare(run, mail, turn)
            if isinstance(prepared, Step):
                return Ran(prepared)
            with self._mutex:
                run.running = RunningTurn(mail, turn)
            result = self._call(prepared, turn)
            turn.end()
            return Ran(turns.done(mail, prepared, turn, result, self._limits), alone=turn.has_connection)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - the user's handler
            turn.end()
            if turn.has_connection:
                self._rollback()
            return Ran(run.firing.conclude(turns.failed(run.kind, mail, before, exc), before))

    async def _arun(self, run: EntityRun, mail: Mail) -> Step:
        before = run.snapshot
        ended = turns.refused_outright(mail, self._max_crashes)
        if ended is not None:
            return run.firing.conclude(Step(ended, before), before)
        turn = self._new_turn(run, mail)
        running = RunningTurn(mail, turn)
        running.task = asyncio.current_task()
        try:
            prepared = self._prepare(run, mail, turn)
            if isinstance(prepared, Step):
                return prepared
            with self._mutex:
                run.running = running
            result = await turns.acall(prepared, turn)
            turn.end()
            return turns.done(mail, prepared, turn, result, self._limits)
        except (Exception, SystemExit, asyncio.CancelledError) as exc:  # noqa: BLE001 - the user's handler
            turn.end()
            return run.firing.conclude(turns.failed(run.kind, mail, before, running.timed_out or exc), before)

    def _call(self, prepared: Prepared, turn: Turn) -> Any:
        if not prepared.operation.is_async:
            return turns.call(prepared, turn)
        # An entity with handlers of both kinds keeps its order, so this one is awaited here.
        box: list[Any] = []

        async def run() -> None:
            box.append(await turns.acall(prepared, turn))

        self._host.loop.submit(run()).result()
        return box[0]

    def _new_turn(self, run: EntityRun, mail: Mail) -> Turn:
        return Turn(
            mail.address,
            mail.id,
            attempt=mail.attempt,
            sender=mail.sender,
            fence=run.mailbox.fence,
            envelope=self._host.envelope,
            host=TurnDrain(self._host, self._open_connection, run, mail),
            timers=Timers(run.snapshot.timers),
            signals=Signals(run.snapshot.signals),
            reply_to=mail.reply_to,
        )

    def _prepare(self, run: EntityRun, mail: Mail, turn: Turn) -> Prepared | Step:
        """The turn ready to run; or its end already, if this code does not know the message."""
        try:
            kind = run.kind or self._host.registry.get(mail.address.type)
            prepared = turns.prepare(kind, mail, run.snapshot, turn)
            if prepared.operation is not kind.deletion:
                turn.begin_firing(*run.firing.begin(turn.timers, mail))
                turn.expecting.begin()
            return prepared
        except EntityError as exc:
            return self._put_off(run, mail, exc)

    def _arrived(self, run: EntityRun, mail: Mail) -> Mail | Step:
        """The mail that a signal's row stands for, and any other mail as it is; or the end of it."""
        if mail.operation != SIGNAL:
            return mail
        try:
            kind = run.kind or self._host.registry.get(mail.address.type)
            row_of = functools.partial(self._host.envelope.signal_completed, mail.address)
            return continued(kind, mail, run.snapshot, run.firing.now_epoch_s(mail), row_of)
        except EntityError as exc:
            return self._put_off(run, mail, exc)

    def _put_off(self, run: EntityRun, mail: Mail, exc: EntityError) -> Step:
        if not is_unknown(run.kind, run.snapshot, exc):
            raise exc
        step = put_off(run.kind, mail, run.snapshot, exc, self._deploy_window_s)
        return run.firing.conclude(step, run.snapshot)
