"""One loop at one runner: its process, and the steps by which it is taken, run and given up."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import msgspec

from entitycelery.settings import Settings
from entitycelery.sharding import succession
from entitycelery.sharding.succession import LOADS_WITHIN_S, Here, Part, Phase, Step
from entitycelery.singleton import LoopSpec, Seat, Timing
from entitycelery.storage.sessions import SingletonSession
from entitycelery.telemetry import happened
from entitycelery.worker.link import now_s
from entitycelery.worker.loop_line import Ended, Go, Loaded, Stop, Until
from entitycelery.worker.loop_process import LoopProcess

log = logging.getLogger("entitycelery.singleton")


class Moment(msgspec.Struct, frozen=True):
    """One look at the store, and the runner that took it."""

    here: Here
    asked_s: float
    """When the question was asked: the answer is true of then."""


class LoopSeat:
    """Does one step at a time; the store must be looked at between two."""

    def __init__(
        self,
        spec: LoopSpec,
        start: Callable[[LoopSpec], LoopProcess],
        settings: Settings,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self.spec = spec
        self._now_s = clock
        self.part = Part()
        self.process: LoopProcess | None = None
        self._start = start
        self._timing: Timing = settings.singleton_timing
        self._stop_timeout_s = settings.singleton_stop_timeout_s
        self._confirmed_s = 0.0
        self._runs_again = False
        self._end_is_wanted = False
        self._failure: str | None = None
        self._steps: dict[Step, Callable[[SingletonSession, Seat, Moment], None]] = {
            Step.LOAD: self._load,
            Step.ASK: self._ask,
            Step.TAKE: self._take,
            Step.RUN: self._run,
            Step.STOP: self._stop,
            Step.KILL: self._kill,
            Step.GIVE: self._give,
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, and nothing runs."""
        return self.process is None and self.part.epoch is None

    def confirm(self, seat: Seat, moment: Moment) -> None:
        """Have its process go on if it is ours still, and lose it else."""
        if self.part.epoch is None:
            return
        if seat.is_free or (seat.holder, seat.epoch) != (moment.here.worker, self.part.epoch):
            self.lose("it ran out")
            return
        if self._now_s() > self._confirmed_s + self._timing.held_for_s:
            # Its process has not waited for this answer.
            self.lose("it was not confirmed in time")
            return
        self._confirmed_s = moment.asked_s
        if self.process is not None and self.part.phase in (Phase.RUNNING, Phase.STOPPING):
            self.process.say(Until(moment.asked_s + self._timing.held_for_s))

    def go_on(self, session: SingletonSession, seat: Seat, moment: Moment) -> bool:
        """Do what is to be done next; whether there was something."""
        if self._has_ended():
            if self.part.epoch is not None:
                session.end(self.spec.name, self.part.epoch, self._failure)
            return True
        self.part = succession.seen(self.part, seat, self._now_s())
        step = succession.next_step(self.part, seat, moment.here, self._now_s(), self._timing)
        if step is None:
            return False
        self._steps[step](session, seat, moment)
        # Somebody else was quicker: not again at once.
        return step is not Step.TAKE or self.part.epoch is not None

    def lose(self, why: str) -> None:
        """Nobody can say that it is held, or somebody else has it: what runs must be gone in time."""
        if self.part.epoch is not None:
            log.warning("singleton %s lost: %s", self.spec.name, why, extra={"singleton": self.spec.name, "why": why})
            happened("entity.singleton.lost", singleton=self.spec.name, fence=self.part.epoch, why=why)
        self.part = succession.lost(self.part)
        if self.part.phase in (Phase.RUNNING, Phase.STOPPING):
            self._tell_to_stop(self._confirmed_s + self._timing.ends_after_s)

    def is_ending(self) -> bool:
        """Whether it is told to stop, and its process is not gone; it is ended when its time has come."""
        if self.part.phase is Phase.STOPPING and self._now_s() >= self.part.kill_at_s:
            self._end_process()
        return not self._has_ended() and self.part.phase is Phase.STOPPING

    # Its process

    def _has_ended(self) -> bool:
        """Hear what the process says; whether it has ended since the last look."""
        process = self.process
        if process is None:
            return False
        # Before what it said is read: all that it has said is there then.
        code = process.exit_code
        for message in process.hear():
            if isinstance(message, Loaded):
                self.part = succession.ready(self.part)
            else:
                self._hear_end(message)
        if code is None:
            return False
        self.process = None
        process.close()
        self._note_end(code)
        return True

    def _hear_end(self, said: Ended) -> None:
        self._failure = said.failure or self._failure
        if self.part.phase is Phase.RUNNING:
            if said.failure is None:
                log.warning("singleton %s returned, though it was not to stop", self.spec.name)
            self.part = succession.told_to_stop(self.part, self._now_s() + self._stop_timeout_s)

    def _note_end(self, code: int) -> None:
        name = self.spec.name
        if not self._end_is_wanted and self._failure is None and code != 0:
            self._failure = f"its process ended with {_described(code)}"
        self.part = succession.ended(self.part, self.spec, self._now_s(), wanted=self._end_is_wanted)
        if self._failure is not None:
            pause_s = max(0.0, self.part.retry_at_s - self._now_s())
            log.error("singleton %s failed: %s", name, self._failure, extra={"singleton": name, "pause_s": pause_s})
            happened("entity.singleton.failed", singleton=name, why=self._failure, pause_s=pause_s)

    def _tell_to_stop(self, kill_at_s: float) -> None:
        self._end_is_wanted = True
        self.part = succession.told_to_stop(self.part, kill_at_s)
        if self.process is not None:
            self.process.say(Stop())

    def _end_process(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.part = succession.killed(self.part)

    # Steps

    def _load(self, _session: SingletonSession, _seat: Seat, _moment: Moment) -> None:
        self._end_is_wanted, self._failure = False, None
        self.part = succession.loading(self.part, self._now_s())
        try:
            self.process = self._start(self.spec)
        except OSError as exc:
            # Its folder is gone, for example.
            self._failure = f"its process could not be started: {exc}"
            self._note_end(0)

    def _ask(self, session: SingletonSession, seat: Seat, _moment: Moment) -> None:
        session.ask(seat)

    def _take(self, session: SingletonSession, _seat: Seat, _moment: Moment) -> None:
        name = self.spec.name
        self._confirmed_s = self._now_s()
        found = session.take(name)
        if found is None:
            self.part = succession.lost(self.part)
            return
        seat, epoch = found
        self._runs_again = False
        self.part = succession.taken(self.part, seat, epoch, self._now_s())
        waits_s = max(0.0, self.part.may_run_at_s - self._now_s())
        log.info("singleton %s taken", name, extra={"singleton": name, "epoch": epoch, "waits_s": waits_s})
        happened("entity.singleton.taken", singleton=name, epoch=epoch, waits_s=waits_s)

    def _run(self, session: SingletonSession, _seat: Seat, moment: Moment) -> None:
        assert self.process is not None
        assert self.part.epoch is not None
        name, pid = self.spec.name, self.process.pid
        fence = session.run(name, self.part.epoch, pid=pid, again=self._runs_again)
        if fence is None:
            self.lose("it ran out")
            return
        self._runs_again = True
        self.part = succession.begun(self.part, fence, self._now_s())
        grace_s = self._timing.ends_after_s - self._timing.held_for_s
        self.process.say(Go(fence, moment.asked_s + self._timing.held_for_s, grace_s))
        happened("entity.singleton.started", singleton=name, fence=fence, pid=pid)

    def _stop(self, _session: SingletonSession, _seat: Seat, _moment: Moment) -> None:
        log.info("singleton %s is told to stop", self.spec.name, extra={"singleton": self.spec.name})
        must_end_s = self._confirmed_s + self._timing.ends_after_s
        self._tell_to_stop(must_end_s if self.part.epoch is None else self._now_s() + self._stop_timeout_s)

    def _kill(self, _session: SingletonSession, _seat: Seat, _moment: Moment) -> None:
        if self.part.phase is Phase.STOPPING:
            self._failure = f"it did not stop within {self._stop_timeout_s:g} s: its process was ended"
        elif self._now_s() >= self.part.kill_at_s:
            self._failure = f"it was not loaded within {LOADS_WITHIN_S:g} s"
        else:
            # It waits in vain, somebody else is to run it.
            self._end_is_wanted = True
        self._end_process()

    def _give(self, session: SingletonSession, seat: Seat, moment: Moment) -> None:
        assert self.part.epoch is not None
        name = self.spec.name
        session.give(seat, self.part.epoch)
        self.part = succession.given(self.part)
        why = "leaving" if moment.here.leaves else "somebody else is to have it"
        log.info("singleton %s handed over: %s", name, why, extra={"singleton": name, "why": why})
        happened("entity.singleton.handed_over", singleton=name, why=why)


def _described(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
