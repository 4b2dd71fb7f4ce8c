"""Who hosts what: runners and leases, as the store keeps them and everybody reads them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from entitycelery.address import ShardId

MACHINE_IDS = 1024
"""Machine ids are smaller: ten bits, as in snowflake ids."""

WORKER_VARIABLE = "_ENTITYCELERY_WORKER"
"""The environment variable by which all processes of one worker know its token."""


class NewRunner(msgspec.Struct, frozen=True):
    """What a runner says of itself when it registers."""

    worker: str
    """The token of its worker, part of the names of all its database sessions; new at every start of a worker."""
    address: str
    """The worker's node name, as Celery knows it."""
    host: str
    pid: int
    """Of the worker's parent process."""
    groups: tuple[str, ...]
    """The shard groups that it serves."""
    weight: float
    """Its share of the shards, relative to the others'."""
    pool: str
    library_version: str
    app_version: str | None = None


class Runner(msgspec.Struct, frozen=True):
    """A registered runner, as one look at the store found it."""

    instance: str
    """New at every registration: a restarted worker inherits nothing of the one before."""
    worker: str
    address: str
    host: str
    pid: int
    groups: tuple[str, ...]
    weight: float
    pool: str
    library_version: str
    app_version: str | None
    machine_id: int
    """Of no other living runner; from 0 up to MACHINE_IDS."""
    started_at: datetime
    seen_at: datetime
    unseen_s: float
    """How long it has not renewed its row, by the database's clock; to a runner by its own, see silence."""
    starved: bool
    """Whether all its pool's slots are taken by other work, so that it takes no shards."""
    leaving: bool
    """Whether it gives its shards up to end."""
    refused: frozenset[ShardId] = frozenset()
    """Shards with mail that its code does not know: others host them, where there are others."""
    locked: bool | None = None
    """Whether its session holds its lock: then its process is there. None where the database cannot tell."""


class Lease(msgspec.Struct, frozen=True):
    """Who holds a shard; `holder` is a runner's instance, or None where nobody does."""

    shard: ShardId
    holder: str | None
    epoch: int
    """Grows with every new holder."""
    since: datetime | None


class ShardLoad(msgspec.Struct, frozen=True):
    """Messages that wait in one shard."""

    shard: ShardId
    pending: int
    oldest_s: float
    """How long the oldest has waited since it was due."""


class ShardStatus(msgspec.Struct, frozen=True):
    """One shard: who holds it, and what waits in it."""

    shard: ShardId
    holder: Runner | None
    """None: nobody, or one who is not registered any more."""
    since: datetime | None
    """Since when; None where nobody holds it."""
    epoch: int
    """How many holders it has had."""
    pending: int
    oldest_s: float | None
    """How long the oldest message has waited since it was due; None where none waits."""


class Placement(msgspec.Struct, frozen=True):
    """One look at all runners and all leases."""

    runners: tuple[Runner, ...]
    leases: tuple[Lease, ...]

    def runner(self, instance: str) -> Runner | None:
        return next((runner for runner in self.runners if runner.instance == instance), None)
