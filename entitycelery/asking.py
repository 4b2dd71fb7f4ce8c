"""What is asked of `entities` about entities and messages. Nothing here changes anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, TypeVar, cast

from entitycelery.address import parse_address
from entitycelery.client.census import unknown_kinds
from entitycelery.message import EntityStatus, PendingMessage, Reply, StoreStats, UnknownKind
from entitycelery.parts import Parts
from entitycelery.ref import address_of, entity_from, kind_of

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
        status: Literal["idle", "pending", "processing"]
        status = "processing" if mailbox.claimed else "pending" if mailbox.pending else "idle"
        return EntityStatus(status, stored.state is not None, stored.version, mailbox.pending)

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

    def check_types(self) -> list[UnknownKind]:
        """What is stored and not known to this app's code: types, operations and versions of states, with counts.

        Reads whole tables, so it is for people and deployments, not for requests.
        """
        parts = self._ready()
        return unknown_kinds(parts.store.census(), parts.registry)
