"""Who runs a singleton: pure rules for one runner and one singleton, by which it loads, asks, takes, runs and gives up.

The first choice for it is the runner to which an operator moved it, else the one that holds the shard of its name.
A first choice takes a free lock at once, others after a while, so that it runs although the first choice does not know
its code. Whoever holds it keeps it until somebody asks who has its code loaded already.
"""

from __future__ import annotations

import enum
import math

import msgspec

from entitycelery.singleton import LoopSpec, Seat, Timing

LOADS_WITHIN_S = 60.0
"""An import that takes longer hangs, and holds the singleton up."""


class Phase(enum.Enum):
    """How far the process of a loop is."""

    NONE = "none"
    LOADING = "loading"
    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"


class Step(enum.Enum):
    """What to do next."""

    LOAD = "load"
    """Start its process, which imports the app and waits."""
    ASK = "ask"
    """Have the holder give it up."""
    TAKE = "take"
    """Take its lock."""
    RUN = "run"
    """Draw a fence and have the process run the loop."""
    STOP = "stop"
    """Tell the loop to stop."""
    KILL = "kill"
    """End its process."""
    GIVE = "give"
    """Hand the lock over."""


class Here(msgspec.Struct, frozen=True):
    """This runner, with regard to one singleton."""

    worker: str
    has_shard: bool
    """Whether it holds the shard of the singleton's name."""
    serves: bool
    """Whether it is registered, its worker answers, and it hosts the singleton's group."""
    leaves: bool
    """Whether it is to host nothing any more."""


class Part(msgspec.Struct, frozen=True):
    """What this runner has to do with a singleton. Times are by the clock that goes on while the machine sleeps."""

    phase: Phase = Phase.NONE
    epoch: int | None = None
    """Of our hold; None: it is not held here."""
    last_epoch: int | None = None
    """Of the hold before, if it was lost."""
    may_run_at_s: float = 0.0
    kill_at_s: float = math.inf
    """When its process is ended that has not loaded, or not stopped, by then."""
    retry_at_s: float = 0.0
    failures: int = 0
    """In a row."""
    is_unfit: bool = False
    """Whether its code could not be loaded here."""
    free_since_s: float | None = None
    ran_at_s: float | None = None
    """When the process began to run; None until then."""

    @property
    def has_run(self) -> bool:
        return self.ran_at_s is not None


def is_first_choice(seat: Seat, here: Here) -> bool:
    """Whether the singleton is to be here."""
    if seat.wanted is not None:
        return seat.wanted == here.worker
    return here.has_shard and seat.avoided != here.worker


def next_step(part: Part, seat: Seat, here: Here, now_s: float, timing: Timing) -> Step | None:
    """What to do now; None: nothing. Look again after each step."""
    if now_s >= part.kill_at_s:
        return Step.KILL
    if part.phase is Phase.STOPPING:
        return None
    if part.epoch is not None:
        return _of_holder(part, seat, here, now_s)
    if part.phase is Phase.RUNNING:
        return Step.STOP
    return _of_candidate(part, seat, here, now_s, timing)


def _of_holder(part: Part, seat: Seat, here: Here, now_s: float) -> Step | None:
    if here.leaves or part.is_unfit or seat.asked_by not in (None, here.worker) or seat.avoided == here.worker:
        return _way_out(part, now_s)
    if part.phase is Phase.RUNNING:
        return Step.STOP if seat.restart_wanted else None
    if part.phase is Phase.NONE:
        # While the pause goes on: it is short, and an import may be long.
        return Step.LOAD
    pause_ends_s = 0.0 if seat.restart_wanted else part.retry_at_s
    return Step.RUN if part.phase is Phase.READY and now_s >= max(part.may_run_at_s, pause_ends_s) else None


def _way_out(part: Part, now_s: float) -> Step | None:
    if part.phase is Phase.RUNNING:
        return Step.STOP
    if part.phase is not Phase.NONE:
        return Step.KILL
    # Sooner, it would have to be said how long the successor has to wait still.
    return Step.GIVE if now_s >= part.may_run_at_s else None


def _of_candidate(part: Part, seat: Seat, here: Here, now_s: float, timing: Timing) -> Step | None:
    is_first = is_first_choice(seat, here)
    if not here.serves or here.leaves or now_s < part.retry_at_s:
        return _unload(part)
    if part.free_since_s is not None and now_s - part.free_since_s >= _patience_s(seat, here, timing):
        return Step.TAKE
    if not is_first:
        return _unload(part)
    if part.phase is Phase.NONE:
        return Step.LOAD
    # Only now that it is known to load here: a broken deployment takes nothing from where it works.
    return Step.ASK if part.phase is Phase.READY and seat.asked_by != here.worker and not seat.is_free else None


def _unload(part: Part) -> Step | None:
    return None if part.phase is Phase.NONE else Step.KILL


def _patience_s(seat: Seat, here: Here, timing: Timing) -> float:
    if is_first_choice(seat, here):
        return 0.0
    return timing.avoided_waits_s if seat.avoided == here.worker else timing.others_wait_s


# What becomes of it


def seen(part: Part, seat: Seat, now_s: float) -> Part:
    """Somebody else's lock is on it, or nobody's, since when."""
    since_s = now_s if part.free_since_s is None else part.free_since_s
    return msgspec.structs.replace(part, free_since_s=since_s if seat.is_free and part.epoch is None else None)


def taken(part: Part, seat: Seat, epoch: int, now_s: float) -> Part:
    """We have its lock; `seat` is as it was before that."""
    if seat.handed_over:
        may_run_at_s = now_s
    elif seat.epoch == part.last_epoch:
        # Held here before and by nobody since. Our own process is gone, or we would not take it; but the one before
        # that may not have had its time yet.
        may_run_at_s = part.may_run_at_s
    else:
        may_run_at_s = now_s + seat.successor_waits_s
    return msgspec.structs.replace(
        part, epoch=epoch, may_run_at_s=may_run_at_s, free_since_s=None, last_epoch=None, is_unfit=False
    )


def begun(part: Part, epoch: int, now_s: float) -> Part:
    """Its process runs it."""
    return msgspec.structs.replace(part, phase=Phase.RUNNING, epoch=epoch, ran_at_s=now_s, kill_at_s=math.inf)


def told_to_stop(part: Part, kill_at_s: float) -> Part:
    """It was told to stop, or must have stopped sooner than it was told before."""
    return msgspec.structs.replace(part, phase=Phase.STOPPING, kill_at_s=min(part.kill_at_s, kill_at_s))


def killed(part: Part) -> Part:
    """Its process was ended, and is about to be gone."""
    return msgspec.structs.replace(part, phase=Phase.STOPPING, kill_at_s=math.inf)


def lost(part: Part) -> Part:
    """Its lock is not ours any more, or nobody can say that it is."""
    last_epoch = part.last_epoch if part.epoch is None else part.epoch
    return msgspec.structs.replace(part, epoch=None, last_epoch=last_epoch, free_since_s=None)


def given(part: Part) -> Part:
    """It was handed over."""
    given_up = msgspec.structs.replace(part, epoch=None, last_epoch=None, free_since_s=None)
    return given_up if part.is_unfit else msgspec.structs.replace(given_up, failures=0, retry_at_s=0.0)


def loading(part: Part, now_s: float) -> Part:
    """Its process was started."""
    kill_at_s = now_s + LOADS_WITHIN_S
    return msgspec.structs.replace(part, phase=Phase.LOADING, is_unfit=False, kill_at_s=kill_at_s, ran_at_s=None)


def ready(part: Part) -> Part:
    """Its process has loaded the code and waits."""
    return msgspec.structs.replace(part, phase=Phase.READY, kill_at_s=math.inf)


def ended(part: Part, spec: LoopSpec, now_s: float, *, wanted: bool) -> Part:
    """Its process has ended, as was `wanted`, or by itself."""
    done = msgspec.structs.replace(part, phase=Phase.NONE, kill_at_s=math.inf)
    if wanted:
        return msgspec.structs.replace(done, failures=0, retry_at_s=0.0)
    ran_s = 0.0 if part.ran_at_s is None else now_s - part.ran_at_s
    # What runs for longer than the longest pause has not failed in a row.
    failures = 1 if ran_s > spec.restart_backoff_max_s else part.failures + 1
    retry_at_s = now_s + spec.backoff_s(failures)
    return msgspec.structs.replace(done, failures=failures, retry_at_s=retry_at_s, is_unfit=not part.has_run)
