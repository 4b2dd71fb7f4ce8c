"""Singletons: what a worker tells of its loops, what the store keeps of them, and the times that keep them single."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from entitycelery.address import ShardId, shard_of
from entitycelery.placement import Runner


class Timing(msgspec.Struct, frozen=True):
    """Who waits how long, all derived from one time.

    A hold is as old as the question by which it was last confirmed. At `held_for_s` its loop is told to stop, at
    `ends_after_s` the loop's process is ended, so that it is gone when a successor, who found the lock free no sooner
    than that question, has waited for `successor_waits_s`.
    """

    confirm_every_s: float = 0.25

    @property
    def answer_within_s(self) -> float:
        """The deadline of a confirmation."""
        return 2 * self.confirm_every_s

    @property
    def held_for_s(self) -> float:
        """How long a confirmation is good for; also how long a hold lives that is a row."""
        return self.confirm_every_s + self.answer_within_s

    @property
    def ends_after_s(self) -> float:
        """When the process of a loop is ended that could not be confirmed."""
        return self.held_for_s + self.confirm_every_s

    @property
    def successor_waits_s(self) -> float:
        """How long a hold that was not handed over is held before its loop runs."""
        return self.ends_after_s + self.confirm_every_s

    @property
    def others_wait_s(self) -> float:
        """How long whoever is not the first choice leaves a free lock to the one who is."""
        return 2 * self.confirm_every_s

    @property
    def avoided_waits_s(self) -> float:
        """How long a runner leaves it to others, from which it was moved away."""
        return 20 * self.confirm_every_s


class LoopSpec(msgspec.Struct, frozen=True):
    """A loop as a worker tells its runner process of it: where its function is, and how it is looked after."""

    name: str
    shard_group: str
    module: str
    qualname: str
    restart_backoff_s: float
    restart_backoff_max_s: float
    heartbeat_interval_s: float

    def shard(self, shards_per_group: int) -> ShardId:
        """The shard whose holder is to have it."""
        return shard_of(self.shard_group, self.name, shards_per_group)

    def backoff_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        doubled = self.restart_backoff_s * 2.0 ** min(failures - 1, 60)
        return float(min(self.restart_backoff_max_s, doubled))


class Seat(msgspec.Struct, frozen=True):
    """The row of a singleton as its candidates read it. Runners are named by their workers' tokens."""

    name: str
    number: int
    """By which it is locked, where locks have numbers."""
    epoch: int
    holder: str | None
    """Who holds it, or died while holding it."""
    is_free: bool
    """Whether nobody's lock is on it."""
    handed_over: bool
    """Whether its last holder has stopped it before giving it up."""
    successor_waits_s: float
    asked_by: str | None
    """The runner that is to have it, once it is ready."""
    wanted: str | None
    """Where an operator wants it, while that runner lives."""
    avoided: str | None
    """Where an operator does not want it."""
    restart_wanted: bool


class StoredSingleton(msgspec.Struct, frozen=True):
    """The row of a singleton, for people. Runners are named by their workers' tokens."""

    name: str
    shard_group: str
    holder: str | None
    address: str | None
    epoch: int
    since: datetime | None
    pid: int | None
    started_at: datetime | None
    heartbeat_at: datetime | None
    heartbeat_age_s: float | None
    heartbeat_interval_s: float
    restarts: int
    last_failure: str | None
    last_failure_at: datetime | None
    wanted: str | None


class Singleton(msgspec.Struct, frozen=True):
    """One singleton: who runs it, and how it is. An entity that ticks has no process of its own: its heartbeat is its
    last tick, its fence the epoch of its shard's lease."""

    kind: Literal["loop", "tick"]
    name: str
    shard_group: str
    holder: Runner | None
    """None: nobody, or one that is gone and has no successor yet."""
    since: datetime | None
    """Since when that runner holds it; None where nobody does."""
    fence: int
    """The number of its latest start: larger with every start, wherever."""
    pid: int | None
    """Of its process; None while none runs."""
    started_at: datetime | None
    """When that process began to run it."""
    heartbeat_at: datetime | None
    """Its last heartbeat."""
    heartbeat_age_s: float | None
    """How old that is, by the database's clock."""
    heartbeat_interval_s: float
    healthy: bool
    """Whether it runs, and its last heartbeat is younger than twice the interval."""
    restarts: int
    """How often its holders have started it again."""
    last_failure: str | None
    """Why it last ended by itself."""
    last_failure_at: datetime | None
    wanted: Runner | None
    """The living runner to which it was moved by hand."""
