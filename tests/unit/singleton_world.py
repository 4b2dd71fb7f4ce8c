"""A world without clocks, processes and databases, in which runners follow the rules for one singleton.

Time goes in steps. Answers of the store may be as old as their deadline, processes take their time to load and to stop,
runners die, freeze and lose their sessions; and in each step somebody counts how many loops run.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from entitycelery.settings import Settings
from entitycelery.sharding.succession import Here
from entitycelery.singleton import LoopSpec, Seat
from entitycelery.worker.loop_line import Ended, Go, Loaded, Stop, Until
from entitycelery.worker.loop_seat import LoopSeat, Moment

STEP_S = 0.05
SETTINGS = Settings()
TIMING = SETTINGS.singleton_timing
SPEC = LoopSpec("feed", "default", "shop", "feed", 0.5, 5.0, 5.0)


class Process:
    """A loop's process: obeys its line as worker/loop_line.py does, and is slow or deaf by chance."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loads_at_s = world.now_s + world.random.choice([0.0, 0.0, 0.1, 2.0])
        self._loads_badly = world.random.random() < world.trouble
        self._fails_at_s = world.now_s + world.random.choice([2.0, 10.0, 1e9])
        self._stops_within_s = world.random.choice([0.05, 0.3, 2.0, 1e9, 1e9])
        self._said: list[Loaded | Ended] = []
        self._until_s: float | None = None
        self._stops_at_s: float | None = None
        self.fence: int | None = None
        self.exit_code: int | None = None
        self.has_closed = False
        self.pid = len(world.processes) + 1
        world.processes.append(self)

    @property
    def runs(self) -> bool:
        return self.fence is not None and self.exit_code is None

    def go_on(self) -> None:
        """A step of time."""
        if self.exit_code is not None:
            return
        now_s = self._world.now_s
        if self._loads_at_s <= now_s:
            self._loads_at_s = 1e9
            if self._loads_badly:
                self._end("ImportError")
                return
            self._said.append(Loaded())
        if self.fence is None:
            return
        assert self._until_s is not None
        if not self._world.watches:
            pass
        elif now_s >= self._until_s + TIMING.ends_after_s - TIMING.held_for_s:
            self.kill()
        elif now_s >= self._until_s:
            self._stop()
        if self._stops_at_s is not None and now_s >= self._stops_at_s:
            self._end(None)
        elif now_s >= self._fails_at_s and self._world.trouble:
            self._end("ValueError")

    def _stop(self) -> None:
        if self._stops_at_s is None:
            self._stops_at_s = self._world.now_s + self._stops_within_s

    def _end(self, failure: str | None) -> None:
        self._said.append(Ended(failure))
        self.exit_code = 0 if failure is None else 1

    def hear(self) -> list[Loaded | Ended]:
        said, self._said = self._said, []
        return said

    def say(self, message: Go | Until | Stop) -> None:
        if isinstance(message, Stop):
            self._stop()
            return
        self._until_s = message.until_s
        if isinstance(message, Go):
            self.fence = message.fence
            if self._world.now_s >= message.until_s:
                self.kill()

    def kill(self) -> None:
        if self.exit_code is None:
            self.exit_code = -9

    def close(self) -> None:
        return


class Session:
    """A runner's session with the world's one row."""

    def __init__(self, world: World, worker: str) -> None:
        self._world = world
        self._worker = worker
        self.has_ended = False

    def begin(self, specs: Collection[LoopSpec]) -> None:
        raise NotImplementedError

    def look(self, names: Collection[str], held: Mapping[str, int]) -> dict[str, Seat]:
        world = self._world
        self._check()
        mine = held.get(SPEC.name) == world.row.epoch and world.row.holder == self._worker
        if mine and world.are_rows and world.expires_at_s > world.now_s:
            world.expires_at_s = world.now_s + TIMING.held_for_s
        # A lock of our own is looked after by the session, and not asked for.
        is_free = world.is_free(self) and (world.are_rows or SPEC.name not in held)
        return {SPEC.name: msgspec.structs.replace(world.row, is_free=is_free)}

    def take(self, name: str) -> tuple[Seat, int] | None:
        self._check()
        world = self._world
        if not world.is_free(self):
            return None
        before = world.row
        world.locked_by = self
        world.expires_at_s = world.now_s + TIMING.held_for_s
        avoided = None if before.avoided == self._worker else before.avoided
        world.change(
            holder=self._worker,
            epoch=before.epoch + 1,
            handed_over=False,
            asked_by=None,
            avoided=avoided,
            successor_waits_s=TIMING.successor_waits_s,
        )
        return before, world.row.epoch

    def run(self, name: str, epoch: int, *, pid: int, again: bool) -> int | None:
        self._check()
        if (self._world.row.holder, self._world.row.epoch) != (self._worker, epoch):
            return None
        self._world.change(epoch=epoch + 1, restart_wanted=False)
        return epoch + 1

    def end(self, name: str, epoch: int, failure: str | None) -> None:
        self._check()

    def give(self, seat: Seat, epoch: int) -> None:
        self._check()
        if (self._world.row.holder, self._world.row.epoch) == (self._worker, epoch):
            self._world.change(holder=None, handed_over=True)
            self._world.expires_at_s = 0.0
            if self._world.locked_by is self:
                self._world.locked_by = None

    def ask(self, seat: Seat) -> None:
        self._check()
        if self._world.row.epoch == seat.epoch:
            self._world.change(asked_by=self._worker)

    def _check(self) -> None:
        if self.has_ended:
            raise ConnectionError


class Runner:
    """One runner, that looks every quarter of a second and reads the answer later."""

    def __init__(self, world: World, worker: str) -> None:
        self._world = world
        self.worker = worker
        self.seat = LoopSeat(SPEC, self._start, SETTINGS, lambda: world.now_s)
        self.session: Session | None = None
        self.frozen_until_s = 0.0
        self.is_dead = False
        self.leaves = False
        self._asked: tuple[float, dict[str, Seat]] | None = None
        self._next_at_s = 0.0
        self._rests_until_s = 0.0

    def _start(self, _spec: LoopSpec) -> Any:
        return Process(self._world)

    def go_on(self) -> None:
        """A step of time."""
        world = self._world
        if self.is_dead or world.now_s < max(self.frozen_until_s, self._next_at_s):
            return
        if self.session is None:
            if not self.seat.is_ending() and world.now_s >= self._rests_until_s:
                self.session = Session(world, self.worker)
            return
        try:
            self._look(self.session)
        except ConnectionError:
            self.lose()

    def _look(self, session: Session) -> None:
        world = self._world
        if self._asked is None:
            held = {} if self.seat.part.epoch is None else {SPEC.name: self.seat.part.epoch}
            self._asked = world.now_s, session.look([SPEC.name], held)
            self._next_at_s = world.now_s + world.answers_after_s()
            return
        (asked_s, found), self._asked = self._asked, None
        if world.now_s - asked_s > TIMING.held_for_s:
            raise ConnectionError
        here = Here(self.worker, world.shard_at == self.worker, True, self.leaves)
        moment = Moment(here, asked_s)
        self.seat.confirm(found[SPEC.name], moment)
        if not self.seat.go_on(session, found[SPEC.name], moment):
            self._next_at_s = max(world.now_s, asked_s + TIMING.confirm_every_s)

    def lose(self) -> None:
        self.end_session()
        self.session, self._asked = None, None
        self._rests_until_s = self._world.now_s + 0.2
        self.seat.lose("as the test wants it")

    def die(self) -> None:
        """Its processes die with it."""
        self.is_dead = True
        if self.seat.process is not None:
            self.seat.process.kill()
        self.end_session()

    def end_session(self) -> None:
        """The server ends it; the runner finds out when it asks next."""
        if self.session is not None:
            self.session.has_ended = True
            if self._world.locked_by is self.session:
                self._world.locked_by = None


class World:
    """Runners, their processes, one row and one lock."""

    def __init__(self, seed: int, *, are_rows: bool, trouble: float, watches: bool = True) -> None:
        self.random = random.Random(seed)
        self.are_rows = are_rows
        self.trouble = trouble
        # Whether processes end themselves in time; else runners must not freeze.
        self.watches = watches
        self.now_s = 1000.0
        self.row = Seat(SPEC.name, 1, 0, None, True, True, 0.0, None, None, None, False)
        self.locked_by: Session | None = None
        self.expires_at_s = 0.0
        self.processes: list[Process] = []
        self.runners = [Runner(self, f"w{number}") for number in range(3)]
        self.shard_at = "w0"
        self._started = len(self.runners)

    def change(self, **values: Any) -> None:
        self.row = msgspec.structs.replace(self.row, **values)

    def is_free(self, session: Session) -> bool:
        if self.are_rows:
            return self.row.holder is None or self.expires_at_s <= self.now_s
        return self.locked_by in (None, session)

    def answers_after_s(self) -> float:
        return self.random.choice([0.0, 0.0, 0.1, *([0.4, TIMING.answer_within_s] if self.trouble else [])])

    @property
    def living(self) -> list[Runner]:
        return [runner for runner in self.runners if not runner.is_dead]

    def running(self) -> list[Process]:
        return [process for process in self.processes if process.runs]

    def go_on(self) -> None:
        """A step of time, in any order."""
        self.now_s += STEP_S
        processes = [process for process in self.processes if process.exit_code is None]
        actors: list[Runner | Process] = [*self.living, *processes]
        self.random.shuffle(actors)
        for actor in actors:
            actor.go_on()

    def replace(self, runner: Runner) -> None:
        """Another worker is started for one that is gone."""
        self.runners[self.runners.index(runner)] = Runner(self, f"w{self._started}")
        self._started += 1
        if self.shard_at == runner.worker:
            self.move_shard()

    def move_shard(self) -> None:
        self.shard_at = self.random.choice(self.living).worker

    def do_something(self) -> str:
        """A fault, or an operator's wish."""
        runner = self.random.choice(self.living)
        freezes = ["freeze", "freeze and cut", "freeze and cut"] if self.watches else []
        what = self.random.choice(["kill", "cut", "cut", *freezes, "move shard", "restart", "want", "avoid", "leave"])
        if what == "kill":
            runner.die()
            self.replace(runner)
        elif what == "leave":
            self._leave(runner)
        if "freeze" in what:
            runner.frozen_until_s = self.now_s + self.random.choice([0.3, 0.8, 1.5, 5.0])
        if "cut" in what:
            runner.end_session()
        if what == "move shard":
            self.move_shard()
        if what == "restart":
            self.change(restart_wanted=True)
        if what in ("want", "avoid"):
            wanted, avoided = (runner.worker, None) if what == "want" else (None, runner.worker)
            self.change(wanted=wanted, avoided=avoided)
        return f"{self.now_s:.2f} {what} {runner.worker}"

    def _leave(self, runner: Runner) -> None:
        runner.leaves = True
        if self.shard_at == runner.worker:
            self.shard_at = self.random.choice([one for one in self.living if one is not runner]).worker

    def bury(self) -> None:
        """Workers that left and have nothing any more are gone; so are wishes for workers that are."""
        for runner in self.living:
            if runner.leaves and runner.seat.is_empty:
                runner.die()
                self.replace(runner)
        living = {runner.worker for runner in self.living if not runner.leaves}
        if self.row.wanted not in living:
            self.change(wanted=None)
