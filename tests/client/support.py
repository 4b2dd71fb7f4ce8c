"""A bank on a real store, without worker: drains run in this process, when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery

from entitycelery import Entity, EntityCelery, handler, query
from entitycelery.address import ShardId
from tests.storage.support import change

SHARDS = 4


class InsufficientFundsError(Exception):
    """An importable exception of a user."""


class Account(Entity):
    balance: int = 0
    log: list[str] = []

    @handler
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @handler
    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise InsufficientFundsError(self.balance)
        self.balance -= amount
        return self.balance

    @handler
    def note(self, text: str) -> list[str]:
        self.log.append(text)
        return self.log

    @handler
    async def adeposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @handler
    def close(self) -> None:
        self.turn.delete()

    @query
    def statement(self, times: int = 1) -> int:
        self.balance *= times
        return self.balance


class Narrow(Entity):
    """Its mailbox takes two messages."""

    count: int = 0

    @handler
    def add(self, amount: int = 1) -> int:
        self.count += amount
        return self.count


def make_entities(url: str, cluster: str, **settings: Any) -> EntityCelery:
    """An app with the bank's types on a store that may be empty; it then has its schema, unless auto_migrate is off."""
    app = Celery("bank", broker="memory://", set_as_current=False)
    app.conf.update(
        {
            "entity_database_url": url,
            "entity_cluster": cluster,
            "entity_shards_per_group": SHARDS,
            "entity_auto_migrate": True,
            **{f"entity_{name}": value for name, value in settings.items()},
        }
    )
    entities = EntityCelery(app)
    entities.register(Account)
    entities.register(mailbox_capacity=2)(Narrow)
    entities.migrate_if_allowed()
    return entities


def drain(entities: EntityCelery) -> int:
    """Work off all due mail in this thread; how many turns were committed."""
    shards = [ShardId("default", number) for number in range(entities.settings.shards_per_group)]
    turns = 0
    while True:
        drained = entities.host.drain(*shards)
        turns += drained.turns
        if not drained.more:
            return turns


@contextmanager
def serving(entities: EntityCelery) -> Iterator[None]:
    """A runner in a thread of this process, as it were."""
    stop = threading.Event()
    trouble: list[BaseException] = []

    def serve() -> None:
        try:
            while not stop.is_set():
                if not drain(entities):
                    stop.wait(0.005)
        except BaseException as exc:  # noqa: BLE001 - raised below
            trouble.append(exc)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    if trouble:
        raise trouble[0]


def time_passes(entities: EntityCelery, seconds: float) -> None:
    """Move every instant of the mail so many seconds into the past: due times, expiry, dates of replies, keys."""
    is_sqlite = entities.store.dialect.name == "sqlite"
    for table, columns in (
        ("message", ["due_at", "expires_at", "sent_at"]),
        ("reply", ["finished_at"]),
        ("dead_letter", ["died_at", "sent_at"]),
        ("unique_key", ["begin_at", "end_at"]),
    ):
        moved = ", ".join(
            f"{column} = {column} - {seconds}" + ("" if is_sqlite else " * interval '1 second'") for column in columns
        )
        change(entities.store, f"UPDATE {{{table}}} SET {moved}")  # noqa: S608 - constants


class Rung:
    """A ringer that writes down for which shards it rang."""

    def __init__(self) -> None:
        self.shards: list[ShardId] = []

    def ring(self, shards: Sequence[ShardId]) -> None:
        self.shards += shards


def rung_by(entities: EntityCelery) -> Rung:
    """Put such a ringer in the place of the broker's."""
    entities.host.bell._ringer = ringer = Rung()
    return ringer
