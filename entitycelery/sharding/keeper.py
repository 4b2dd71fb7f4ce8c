"""The keeper: takes the leases that its runner should have, hands over those it should not, and loses all at once.

Runs in a thread of the runner process, where it may wait. Owns the lease session. Decides nothing about who should
host what (see assignment), and consumes nothing: it tells the worker which shards are its own, always all of them.

    register -> confirm -> look -> remove the dead -> assign -> take, hand over -> tell the worker -> wait ... leave
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import msgspec

from entitycelery.address import ShardId
from entitycelery.exceptions import EntityError
from entitycelery.placement import NewRunner, Placement, Runner
from entitycelery.settings import Settings
from entitycelery.sharding.absence import why_gone
from entitycelery.sharding.assignment import assigned
from entitycelery.silence import Silences
from entitycelery.storage.port import Store
from entitycelery.storage.sessions import LeaseSession
from entitycelery.telemetry import happened

log = logging.getLogger("entitycelery.lease")

HANDOVER_S = 0.5
"""A shard that goes elsewhere waits so long for the drain that works on it, and not for a long turn: its entity stays
claimed, and the others of the shard need not wait."""
_RETRY_S = 0.1
# Redis sees a new queue when it next asks, after a second at most; Celery's loops without events after two.
_FRESH_S = 2.5
_LONGEST_REST_S = 1.0
# What is told to the worker runs out before a row could.
_MARGIN = 0.9


class Heard(msgspec.Struct, frozen=True):
    """What the worker said last."""

    at_s: float
    """When, by the clock that goes on while a machine sleeps."""
    done: int
    """The number of the last list of shards that it has carried out."""
    busy: frozenset[ShardId]
    """Shards that drains are working on though the worker consumes them no more."""
    starved: bool
    leaving: bool
    """The worker ends."""
    drained: bool = False
    """An operator wants it to host nothing, until further notice."""
    releases: int = 0
    """How often an operator has had it give everything up, to share out anew."""
    refused: frozenset[ShardId] = frozenset()
    """Shards with mail that its code does not know."""

    def has_stopped(self, said: int, shard: ShardId) -> bool:
        """Whether nothing works on a shard any more that the list of this number leaves out."""
        # A worker that leaves has stopped to consume before it said so, and carries out no more lists.
        return (self.leaving or self.done >= said) and shard not in self.busy


class Worker(Protocol):
    """The worker, as its runner process reaches it."""

    @property
    def heard(self) -> Heard | None:
        """What it said last; None before it consumes anything."""

    @property
    def interrupt(self) -> int:
        """A file descriptor that can be read when it has said something new; `settle` makes it unreadable again."""

    def settle(self) -> None:
        """What made `interrupt` readable is known."""

    def consume(self, shards: Collection[ShardId], for_s: float) -> int:
        """Have it consume exactly these shards for so long, unless told again; the number of this list."""


Condemn = Callable[[Placement, Runner], list[Runner]]
"""Runners other than this one that a health check takes for dead."""


def nobody(_placement: Placement, _me: Runner) -> list[Runner]:
    """No health check."""
    return []


class Keeper:
    """Keeps the leases of one runner until its worker leaves."""

    def __init__(
        self, store: Store, settings: Settings, worker: Worker, new: NewRunner, condemned: Condemn = nobody
    ) -> None:
        self._store = store
        self._settings = settings
        self._worker = worker
        self._new = new
        self._condemned = condemned
        self._shards = settings.served_shards
        self._silences = Silences()
        self._held: frozenset[ShardId] = frozenset()
        self._going: dict[ShardId, tuple[int, float]] = {}
        self._taken_s: dict[ShardId, float] = {}
        self._is_first = False
        self._serves = False
        self._is_waiting = False
        self.has_left = False

    @property
    def held(self) -> frozenset[ShardId]:
        """The shards whose leases are held, and are not on their way to somebody else."""
        return self._held

    @property
    def fresh(self) -> frozenset[ShardId]:
        """Those of them that were taken so recently that wake-ups in their queues may not reach the worker yet."""
        now_s = _now_s()
        return frozenset(shard for shard, taken_s in self._taken_s.items() if now_s - taken_s < _FRESH_S) & self._held

    @property
    def is_first(self) -> bool:
        """Whether this runner is the one that does what one of the cluster has to do."""
        return self._is_first

    @property
    def serves(self) -> bool:
        """Whether this runner is registered, and its worker answers and is to host something."""
        return self._serves

    @property
    def leaves(self) -> bool:
        """Whether the worker ends, or is to host nothing until further notice."""
        heard = self._worker.heard
        return heard is not None and (heard.leaving or heard.drained)

    @property
    def ends(self) -> bool:
        """Whether the worker ends."""
        heard = self._worker.heard
        return heard is not None and heard.leaving

    def run(self) -> None:
        """Hold leases until the worker leaves; whatever goes wrong, begin again."""
        failures = 0
        while not self.has_left:
            if not self._worker_answers():
                time.sleep(_RETRY_S)
                continue
            began_s = _now_s()
            try:
                with self._store.lease_session(
                    self._new.worker,
                    deadline_s=self._settings.lease_timeout_s / 2,
                    lease_s=self._settings.lease_timeout_s,
                ) as session:
                    self._keep(session)
                failures = 0
            except EntityError as exc:
                failures = 1 if _now_s() - began_s > _LONGEST_REST_S else failures + 1
                self._lose(str(exc))
            except Exception:
                failures += 1
                log.exception("keeping leases failed")
                self._lose("an unexpected error")
            if failures:
                heard = self._worker.heard
                if heard is not None and heard.leaving:
                    # Nothing is held, and the store does not answer: there is nothing left to give back.
                    self.has_left = True
                    return
                time.sleep(min(_LONGEST_REST_S, _RETRY_S * 2 ** min(failures, 5)))

    def _worker_answers(self) -> bool:
        heard = self._worker.heard
        return heard is not None and _now_s() - heard.at_s < self._settings.lease_timeout_s

    def _keep(self, session: LeaseSession) -> None:
        me = session.register(self._new)
        heard = self._worker.heard
        releases = heard.releases if heard is not None else 0
        log.info("runner registered", extra=_described(me))
        confirmed_s, confirmed = -math.inf, None
        while True:
            heard = self._worker.heard
            if heard is None or not self._worker_answers():
                session.leave()
                self._lose("the worker does not answer")
                return
            ends = heard.leaving or heard.releases != releases
            gives_up = ends or heard.drained
            told = (heard.starved, gives_up, heard.refused)
            if told != confirmed or _now_s() - confirmed_s >= self._settings.refresh_interval_s:
                # Counted from before the question: the answer may be as old as that.
                confirmed_s, confirmed = _now_s(), told
                if not session.confirm(starved=heard.starved, leaving=gives_up, refused=heard.refused):
                    self._lose("evicted")
                    return
            self._round(session, me, session.held, confirmed_s, gives_up)
            if ends and not self._held and not self._going:
                session.leave()
                log.info("runner left", extra=_described(me))
                self.has_left = heard.leaving
                return
            session.wait(self._pause_s(), self._worker.interrupt)
            self._worker.settle()

    def _round(
        self, session: LeaseSession, me: Runner, held: frozenset[ShardId], confirmed_s: float, gives_up: bool
    ) -> None:
        """Take and hand over once, and tell the worker."""
        self._forget_lost(self._held | self._going.keys(), held)
        looked_s = _now_s()
        placement = self._silences.placement(session.look(), looked_s)
        living = self._living(session, placement, me)
        own = next((runner for runner in living if runner.instance == me.instance), None)
        wanted = {shard for shard, name in assigned(living, self._shards).items() if name == me.instance}
        if own is None or gives_up:
            wanted = set()
        taken = session.take(sorted(wanted - held))
        self._log_taken(taken)
        # Replaced, not changed: another thread reads it.
        self._taken_s = {**self._taken_s, **dict.fromkeys(taken, _now_s())}
        leaving_us = (held | taken.keys()) - wanted
        self._held = frozenset((held | taken.keys()) - leaving_us)
        self._serves = own is not None and not gives_up
        self._is_first = bool(living) and min(living, key=_by_instance).instance == me.instance
        number = self._consume(confirmed_s)
        self._hand_over(session, leaving_us, number, "leaving" if gives_up else "assigned to another runner")
        session.watch(_next_of(living, me))
        self._is_waiting = bool(self._going) or bool(wanted - self._held)

    def _pause_s(self) -> float:
        # What somebody else has not let go of yet is tried again soon; else he says so when he does.
        interval_s = self._settings.refresh_interval_s
        return min(_RETRY_S, interval_s) if self._is_waiting else interval_s

    def _consume(self, confirmed_s: float) -> int:
        left_s = self._settings.lease_timeout_s * _MARGIN - (_now_s() - confirmed_s)
        return self._worker.consume(sorted(self._held), max(0.0, left_s))

    def _hand_over(self, session: LeaseSession, leaving_us: Collection[ShardId], number: int, why: str) -> None:
        """Give up what the worker has stopped to work on, and in any case what has waited long enough."""
        now_s = _now_s()
        self._going = {shard: self._going.get(shard, (number, now_s)) for shard in leaving_us}
        heard = self._worker.heard
        gone = [
            shard
            for shard, (said, since_s) in self._going.items()
            if now_s - since_s >= HANDOVER_S or (heard is not None and heard.has_stopped(said, shard))
        ]
        if not gone:
            return
        session.give(sorted(gone))
        for shard in gone:
            del self._going[shard]
        self._log("lease released", gone, why)

    def _living(self, session: LeaseSession, placement: Placement, me: Runner) -> list[Runner]:
        """Everybody but the dead, who are removed."""
        condemned = {runner.instance for runner in self._condemned(placement, me)}
        gone = {runner.instance: why_gone(runner, me, condemned, self._settings) for runner in placement.runners}
        for runner in placement.runners:
            why = gone[runner.instance]
            if why and runner.instance != me.instance and session.remove(runner):
                log.warning("runner removed: %s", why, extra=_described(runner))
                happened("entity.runner.removed", address=runner.address, instance=runner.instance, why=why)
        return [runner for runner in placement.runners if not gone[runner.instance]]

    def _forget_lost(self, ours: Iterable[ShardId], held: frozenset[ShardId]) -> None:
        lost = [shard for shard in ours if shard not in held]
        if lost:
            self._log("lease lost", lost, "it ran out")
        self._going = {shard: going for shard, going in self._going.items() if shard in held}

    def _lose(self, why: str) -> None:
        """Nothing is held any more, or nobody can say that it is: consume nothing."""
        lost = [*self._held, *self._going]
        self._held, self._going = frozenset(), {}
        self._is_first = self._serves = False
        self._worker.consume((), 0.0)
        if lost:
            self._log("lease lost", lost, why)
        else:
            log.warning("no leases: %s", why)

    def _log_taken(self, taken: dict[ShardId, int]) -> None:
        for shard, epoch in sorted(taken.items()):
            log.info("lease taken: %s", shard, extra={"shard": str(shard), "epoch": epoch})
            happened("entity.lease.taken", shard=str(shard), epoch=epoch)

    @staticmethod
    def _log(what: str, shards: Iterable[ShardId], why: str) -> None:
        for shard in sorted(shards):
            log.info("%s: %s: %s", what, shard, why, extra={"shard": str(shard), "why": why})
            happened(f"entity.{what.replace(' ', '.')}", shard=str(shard), why=why)


def _next_of(living: Collection[Runner], me: Runner) -> Runner | None:
    """Whom to watch: each watches the next one, so that every death is noticed once."""
    others = sorted((runner for runner in living if runner.instance != me.instance), key=_by_instance)
    return next((runner for runner in others if runner.instance > me.instance), others[0] if others else None)


def _by_instance(runner: Runner) -> str:
    return runner.instance


def _described(runner: Runner) -> dict[str, object]:
    return {"address": runner.address, "instance": runner.instance, "machine_id": runner.machine_id}


def _now_s() -> float:
    # Goes on while the machine sleeps, as the others' clocks do.
    return time.clock_gettime(time.CLOCK_BOOTTIME)
