"""The loops of one runner: which of them run here, each in a process of its own.

Runs in a thread of the runner process, which starts the processes: they end with this thread. Owns the session that
holds the singletons. Carries out what `succession` decides, a step at a time.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from entitycelery.address import ShardId
from entitycelery.exceptions import EntityError, StoreUnavailable
from entitycelery.placement import NewRunner
from entitycelery.settings import Settings
from entitycelery.sharding.succession import Here
from entitycelery.singleton import LoopSpec, Seat
from entitycelery.storage.port import Store
from entitycelery.storage.sessions import SingletonSession
from entitycelery.worker.link import now_s
from entitycelery.worker.loop_process import LoopProcess
from entitycelery.worker.loop_seat import LoopSeat, Moment

log = logging.getLogger("entitycelery.singleton")

_RETRY_S = 0.1
_LONGEST_REST_S = 1.0
_LOOK_WHILE_ENDING_S = 0.02


class HostingLoops(Protocol):
    """What the loops know of their runner."""

    @property
    def held(self) -> frozenset[ShardId]:
        """The shards that it hosts now."""

    @property
    def serves(self) -> bool:
        """Whether it is registered, and its worker answers."""

    @property
    def leaves(self) -> bool:
        """Whether it is to host nothing, until further notice."""

    @property
    def ends(self) -> bool:
        """Whether its worker ends."""


class Loops:
    """Looks at the store four times a second: confirms what is held, and takes what is to be here."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        new: NewRunner,
        hosting: HostingLoops,
        specs: Sequence[LoopSpec],
        start: Callable[[LoopSpec], LoopProcess],
    ) -> None:
        self._store = store
        self._settings = settings
        self._timing = settings.singleton_timing
        self._new = new
        self._hosting = hosting
        self._seats = [LoopSeat(spec, start, settings) for spec in specs]
        self._has_left = threading.Event()

    def run(self) -> None:
        """Run what is to be here until the runner leaves; whatever goes wrong, begin again."""
        failures = 0
        while not self._has_left.is_set():
            began_s = now_s()
            try:
                with self._store.roster.session(self._new.worker, self._new.address, self._timing) as session:
                    self._follow(session)
            except EntityError as exc:
                failures = 1 if now_s() - began_s > _LONGEST_REST_S else failures + 1
                self._lose(str(exc))
            except Exception:
                failures += 1
                log.exception("running loops failed")
                self._lose("an unexpected error")
            if self._hosting.ends:
                # What has not begun to run ends with this process.
                self._has_left.set()
            elif failures:
                time.sleep(min(_LONGEST_REST_S, _RETRY_S * 2 ** min(failures, 5)))

    def leave(self, within_s: float) -> None:
        """Wait until everything is handed over, which begins when the runner leaves."""
        self._has_left.wait(within_s)

    def _follow(self, session: SingletonSession) -> None:
        session.begin([seat.spec for seat in self._seats])
        while not (self._hosting.ends and all(seat.is_empty for seat in self._seats)):
            asked_s = now_s()
            found = session.look([seat.spec.name for seat in self._seats], self._held())
            if now_s() - asked_s > self._timing.held_for_s:
                # We were frozen, or the machine was: the answer may be as old as that.
                raise StoreUnavailable("the answer was looked at too late")
            looks = [(seat, *self._seen(seat, found, asked_s)) for seat in self._seats]
            # All of them before anything is done for one, which may take as long as a confirmation is good for.
            for seat, row, moment in looks:
                seat.confirm(row, moment)
            done = [seat.go_on(session, row, moment) for seat, row, moment in looks]
            if not any(done):
                self._wait(asked_s + self._timing.confirm_every_s)

    def _seen(self, seat: LoopSeat, found: Mapping[str, Seat], asked_s: float) -> tuple[Seat, Moment]:
        if seat.spec.name not in found:
            # Somebody has deleted it; the next session declares it again.
            raise StoreUnavailable(f"the singleton {seat.spec.name} has no row any more")
        here = Here(
            worker=self._new.worker,
            has_shard=seat.spec.shard(self._settings.shards_per_group) in self._hosting.held,
            serves=self._hosting.serves and seat.spec.shard_group in self._new.groups,
            leaves=self._hosting.leaves,
        )
        return found[seat.spec.name], Moment(here, asked_s)

    def _held(self) -> dict[str, int]:
        return {seat.spec.name: seat.part.epoch for seat in self._seats if seat.part.epoch is not None}

    def _wait(self, until_s: float) -> None:
        """Until the next look, or until a process has something to say, or has been given its time."""
        ends_s = min([until_s, *(seat.part.kill_at_s for seat in self._seats)])
        processes = [seat.process for seat in self._seats if seat.process is not None and not seat.process.has_closed]
        select.select(processes, [], [], max(0.0, ends_s - now_s()))

    def _lose(self, why: str) -> None:
        """Nobody can say that anything is held: end what runs, before anything else is done."""
        for seat in self._seats:
            seat.lose(why)
        ending = self._seats
        while ending := [seat for seat in ending if seat.is_ending()]:
            time.sleep(_LOOK_WHILE_ENDING_S)
