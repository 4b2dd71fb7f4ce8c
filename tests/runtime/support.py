"""Entities whose handlers do what a test tells them, on top of the bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entitycelery import Entity, EntityCelery, handler
from tests.client.support import make_entities
from tests.storage.support import query

HOOKS: dict[str, Callable[[Any], Any]] = {}
"""What `Puppet.act(name)` does, by name; in this process only."""


class PassingError(Exception):
    """An error that may pass."""


class Puppet(Entity):
    count: int = 0
    log: list[str] = []
    anything: object = None

    @handler
    def act(self, hook: str) -> object:
        self.log.append(hook)
        return HOOKS[hook](self)

    @handler
    async def aact(self, hook: str) -> object:
        self.log.append(f"async {hook}")
        return await HOOKS[hook](self)

    @handler
    def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count

    @handler
    def note(self, text: str) -> None:
        self.log.append(text)

    @handler
    async def anote(self, text: str) -> None:
        self.log.append(text)

    @handler(autoretry_for=(PassingError,), max_retries=2, retry_backoff=10, retry_jitter=False)
    def retry(self, hook: str) -> object:
        self.log.append(hook)
        return HOOKS[hook](self)


class Blocking(Puppet):
    """Holds its mailbox back while a message waits for a retry."""


def make_puppets(url: str, cluster: str, **settings: Any) -> EntityCelery:
    entities = make_entities(url, cluster, **settings)
    entities.register(Puppet)
    entities.register(on_failure="block")(Blocking)
    return entities


def dead_letters(entities: EntityCelery) -> list[tuple[str, str, int]]:
    """Id, reason and number of attempts of each."""
    return query(entities.store, "SELECT id, reason, attempt FROM {dead_letter} ORDER BY seq")  # type: ignore[return-value]
