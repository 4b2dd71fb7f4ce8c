"""What is asked of `entities` about entities and messages. Nothing here changes anything."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Literal, TypeVar, cast

from entitycelery.address import ShardId, parse_address
from entitycelery.client.census import unknown_kinds
from entitycelery.client.hosting import holder_of, statuses
from entitycelery.message import EntityStatus, PendingMessage, Reply, StoreStats, Timer, UnknownKind
from entitycelery.parts import Parts
from entitycelery.placement import WORKER_VARIABLE, Placement, Runner, ShardStatus
from entitycelery.ref import address_of, entity_from, kind_of
from entitycelery.signalling import pending_signals
from entitycelery.signals import Signals
from entitycelery.timers import Timers

E = TypeVar("E")


class Asking(ABC):
    """The part of `EntityCelery` that reads."""

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    def state(self, ref: E) -> E:
        """The entity as committed, typed as its class; a new one where nothing is stored. It is a copy."""
        return cast("E", entity_from(kind_of(ref), self._ready().store.state(address_of(ref))))

    def exists(self, ref: object) -> bool:
        """Whether the entity has a committed state."""
        return self._ready().store.state(address_of(ref)).state is not None

    def status(self, ref: object) -> EntityStatus:
        """What the entity is doing now."""
        address = address_of(ref)
        parts = self._ready()
        stored = parts.store.state(address)
        mailbox = parts.store.mailbox_status(address, parts.envelope.shard(address))
        signals = Signals(stored.signals)
        expected = pending_signals(parts, address, signals)
        waits = len(expected) + len(signals.asked()) + len(Timers(stored.timers).armed)
        status: Literal["idle", "pending", "processing", "suspended"]
        if mailbox.claimed:
            status = "processing"
        elif (expected or signals.holds_answers) and mailbox.pending <= waits:
            status = "suspended"
        else:
            status = "pending" if mailbox.pending else "idle"
        return EntityStatus(status, stored.state is not None, stored.version, mailbox.pending, expected)

    def timers(self, ref: object) -> list[Timer]:
        """The timers that the entity has set, by when they are due, as committed.

        One whose message was cancelled by its id never fires and is left out.

        Raises:
            StateConflict: What is stored cannot be read.
        """
        store = self._ready().store
        armed = Timers(store.state(address_of(ref)).timers).armed
        pending = store.pending_ids([one.message_id for one in armed.values()]) if armed else set()
        listed = [
            Timer(name, one.operation, one.args, one.due_epoch_s, one.every_s, one.message_id)
            for name, one in armed.items()
            if one.message_id in pending
        ]
        return sorted(listed, key=lambda timer: (timer.due_epoch_s, timer.name))

    def reply(self, message_id: str) -> Reply | None:
        """The stored outcome of a message; None while it is pending.

        Raises:
            UnknownMessage: It was never stored, or its reply is purged.
        """
        return self._ready().client.reply_now(message_id)

    def entities(self, type_name: str | None = None, *, after: str | None = None, limit: int = 100) -> list[str]:
        """Addresses of live entities, in order, from after `after`."""
        start = parse_address(after) if after else None
        return [str(address) for address, _ in self._ready().store.states(type_name, start, limit)]

    def stats(self) -> StoreStats:
        """How much there is in the store: pending mail, dead letters, replies, sizes. Reads whole tables."""
        return self._ready().store.stats()

    def messages(self, ref: object = None, *, limit: int = 100) -> list[PendingMessage]:
        """Pending messages, oldest first; of one entity where `ref` is given."""
        parts = self._ready()
        address = None if ref is None else address_of(ref)
        shard = None if address is None else parts.envelope.shard(address)
        return parts.store.pending(address, shard, limit)

    # Placement

    def shard_of(self, ref: object) -> ShardId:
        """The shard that an entity belongs to. Computed here: nothing is asked of the store.

        Raises:
            ConfigurationError: Its type's own `shard_group` function gave no group.
        """
        return self._ready().envelope.shard(address_of(ref))

    def owner_of(self, ref: object) -> Runner | None:
        """The runner that holds the entity's shard, so that hosts the entity; None where nobody does."""
        parts = self._ready()
        address = address_of(ref)
        parts.store.follow_reshards()
        return holder_of(parts.store.placement(), parts.envelope.shard(address))

    def is_local(self, ref: object) -> bool:
        """Whether the entity's shard is held by the worker that this process belongs to.

        By the time you act on it another may hold it. In a process that is no worker's it is never true.
        """
        worker = os.environ.get(WORKER_VARIABLE)
        if worker is None:
            return False
        owner = self.owner_of(ref)
        return owner is not None and owner.worker == worker

    def placement(self) -> Placement:
        """One look at all registered runners and at all leases."""
        return self._ready().store.placement()

    def runners(self) -> list[Runner]:
        """Every registered runner, by address; one that died is among them until another one notices."""
        return sorted(self.placement().runners, key=lambda runner: (runner.address, runner.instance))

    def shards(self) -> list[ShardStatus]:
        """Every shard of the groups of this app's types, and of those in which something is held or waits.

        Counts all pending messages, so it is for people and monitoring, not for requests.
        """
        parts = self._ready()
        parts.store.follow_reshards()
        constant = [kind.constant_group for kind in parts.registry]
        groups = [group for group in constant if group is not None]
        return statuses(parts.store.placement(), parts.store.shard_loads(), groups, parts.store.shards_per_group)

    def check_types(self) -> list[UnknownKind]:
        """What is stored and not known to this app's code: types, operations and versions of states, with counts.

        Reads whole tables, so it is for people and deployments, not for requests.
        """
        parts = self._ready()
        return unknown_kinds(parts.store.census(), parts.registry)
