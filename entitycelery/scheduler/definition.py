"""What a schedule says: when it fires, whom it calls, and what becomes of ticks that are late or overlap."""

from __future__ import annotations

from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from entitycelery.address import Address, fingerprint, keyed_message_id, lock_key, new_message_id, shard_of
from entitycelery.celery_tasks import TASKS_TYPE
from entitycelery.codec import DECODING_ERRORS, from_json, said, to_canonical_json
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import NewMessage
from entitycelery.scheduler.plan import jitter
from entitycelery.scheduler.policy import Policy
from entitycelery.scheduler.recurrence import Once, Recurrence, Tick
from entitycelery.scheduler.tick import MICROSECOND
from entitycelery.stored_schedule import NextTick, Overlap

OVERLAPS = Overlap.__args__  # type: ignore[attr-defined]
SCHEDULED_AT = "scheduled_at"
TASKS_OPERATION = "send"
START = "start"
"""The operation that starts a workflow, and the key under which each is started."""


class EntityTarget(msgspec.Struct, frozen=True, tag_field="kind", tag="entity"):
    """An operation of an entity; `args` is JSON of its named arguments.

    `tells_when`: it has an argument `scheduled_at`, which is the tick's instant.
    """

    type: str
    id: str
    operation: str
    args: str
    group: str
    tells_when: bool = False

    def describe(self) -> str:
        """The target as people write it."""
        return f"{self.type}/{self.id} {self.operation}"


class TaskTarget(msgspec.Struct, frozen=True, tag_field="kind", tag="task"):
    """A Celery task by its name, sent by a worker that hosts entities of the group; `options` are `apply_async`'s."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    group: str

    def describe(self) -> str:
        """The target as people write it."""
        return f"task {self.task}"


class WorkflowTarget(msgspec.Struct, frozen=True, tag_field="kind", tag="workflow"):
    """A workflow: each tick starts one, whose key is the schedule's name and the tick's nominal time."""

    type: str
    args: str
    group: str
    tells_when: bool = False

    def describe(self) -> str:
        """The target as people write it."""
        return f"workflow {self.type}"


Target = EntityTarget | TaskTarget | WorkflowTarget


class Definition(msgspec.Struct, frozen=True):
    """A schedule without its name and its place in time."""

    recurrence: Recurrence
    target: Target
    policy: Policy
    overlap: Overlap = "queue"

    @property
    def generation(self) -> str:
        """A hash of what makes its ticks the ones they are: when and whom, not how late.

        A hash and no counter: workers of an old and of a new release, which store their own definition each, do not
        fire the same tick twice.
        """
        data = to_canonical_json([self.recurrence, self.target], "a schedule")
        return blake2b(data, digest_size=12).hexdigest()

    def encode(self) -> str:
        """As JSON."""
        return to_canonical_json(self, "a schedule").decode()

    def check(self) -> None:
        """Look whether it can fire.

        Raises:
            ConfigurationError: It cannot; the sentence says what is wrong with it.
        """
        self.recurrence.check()
        self.policy.check()
        if self.overlap not in OVERLAPS:
            raise ConfigurationError(f"overlap must be one of {', '.join(OVERLAPS)}, got {self.overlap!r}")
        if self.overlap != "queue" and isinstance(self.target, TaskTarget):
            raise ConfigurationError(
                f"overlap={self.overlap!r} is for entities: when a Celery task ends is not known here; "
                "have an entity's handler do the work, or a function with @entities.cron"
            )
        if self.overlap == "cancel_running" and isinstance(self.target, WorkflowTarget):
            raise ConfigurationError(
                "overlap='cancel_running' drops a turn, and a workflow has many: cancel it yourself"
            )

    def next_tick(self, name: str, tick: Tick | None) -> NextTick | None:
        """A tick as it is stored for a schedule of this name."""
        if tick is None:
            return None
        look_at = tick.at + jitter(self.policy, name, tick)
        return NextTick(tick.nominal, tick.at.timestamp(), look_at.timestamp())

    def first_tick(self, name: str, after: datetime) -> NextTick | None:
        """The first tick after an instant; the only one of a schedule that fires once, also when it has passed."""
        if isinstance(self.recurrence, Once):
            after = min(after, self.recurrence.at - MICROSECOND)
        return self.next_tick(name, self.recurrence.first(after))


_decoder = msgspec.json.Decoder(Definition)


def decode_definition(text: str) -> Definition:
    """The definition of a JSON text. Not checked.

    Raises:
        ConfigurationError: The text is none that this version knows.
    """
    try:
        return _decoder.decode(text)
    except DECODING_ERRORS as exc:
        raise ConfigurationError(f"this is no definition of a schedule: {said(exc)}") from exc


class TickMail:
    """Makes the messages of ticks, in one cluster."""

    def __init__(self, cluster: str, shards_per_group: int) -> None:
        self._cluster = cluster
        self._shards = shards_per_group

    def message(self, name: str, definition: Definition, tick: Tick, *, once: bool = True) -> NewMessage:
        """The message of a tick: always the same one for the same tick, unless it is to be one of its own."""
        address, operation, args = _call(name, definition.target, tick)
        if isinstance(definition.target, WorkflowTarget):
            # That of every workflow's start: the entity is the tick's own.
            key, once = START, True
        else:
            key = f"schedule:{name}:{definition.generation}:{tick.nominal}"
        return NewMessage(
            id=keyed_message_id(self._cluster, address, operation, key) if once else new_message_id(),
            fingerprint=fingerprint(address, operation, args),
            shard=shard_of(definition.target.group, address.id, self._shards),
            address=address,
            lock_key=lock_key(self._cluster, address),
            operation=operation,
            args=args.decode(),
            keyed=once,
        )


def _call(name: str, target: Target, tick: Tick) -> tuple[Address, str, bytes]:
    if isinstance(target, TaskTarget):
        call = {"task": target.task, "args": target.args, "kwargs": target.kwargs, "options": target.options}
        return Address(TASKS_TYPE, name), TASKS_OPERATION, to_canonical_json(call, "the call of a task")
    args = from_json(target.args)
    if target.tells_when:
        args[SCHEDULED_AT] = tick.at
    if isinstance(target, WorkflowTarget):
        address = Address(target.type, f"{name}/{tick.nominal}")
        return address, START, to_canonical_json(args, "the arguments of a tick")
    return Address(target.type, target.id), target.operation, to_canonical_json(args, "the arguments of a tick")
