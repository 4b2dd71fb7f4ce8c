"""What the model test runs: entities that do what a script tells them, and the calls such a script is made of.

A call is a value that prints as it is written, so that a failing script reads as a script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text as sql

from entitycelery import Entity, EntityCelery, handler
from entitycelery.calls import Call as LibraryCall
from entitycelery.entity_type import DELETE as DELETION
from tests.client.support import make_entities
from tests.storage.support import change

SHARDS = 2
HOUR_S = 3600.0
MAX_RETRIES = 2
MAX_CRASHES = 3
CAPACITY = 2
"""Of the mailboxes of `Tight`."""

IN_TURN: list[Callable[[], None]] = []
"""Called at the begin of every turn of this process."""


class WillPassError(Exception):
    """An error after which a message is tried again."""


class Ledger(Entity):
    log: list[str] = []

    @handler
    def note(self, text: str) -> int:
        return self._write(text)

    @handler(throws=(ValueError,))
    def fail(self, text: str) -> int:
        self._write(text)
        raise ValueError(text)

    @handler(
        autoretry_for=(WillPassError,),
        max_retries=MAX_RETRIES,
        retry_backoff=HOUR_S,
        retry_backoff_max=100 * HOUR_S,
        retry_jitter=False,
    )
    def flaky(self, text: str, failures: int) -> int:
        length = self._write(text)
        if self.turn.attempt < failures:
            raise WillPassError(self.turn.attempt)
        return length

    @handler
    def forward(self, text: str, to: str, key: str | None) -> int:
        name, _, entity_id = to.partition("/")
        TYPES[name].ref(entity_id).note.options(key=key).send(text)
        return self._write(text)

    @handler
    def book(self, text: str) -> int:
        self.turn.connection.execute(sql("INSERT INTO booked (text) VALUES (:text)"), {"text": text})
        return self._write(text)

    @handler
    def close(self) -> None:
        self.turn.delete()

    def _write(self, text: str) -> int:
        for act in IN_TURN:
            act()
        self.log.append(text)
        return len(self.log)


class Strict(Ledger):
    """Holds its mailbox back while a message waits for a retry."""


class Tight(Ledger):
    """Its mailbox is small."""


TYPES: dict[str, type[Ledger]] = {"Ledger": Ledger, "Strict": Strict, "Tight": Tight}

# "a" is in one shard, "d" and "e" are in the other.
ADDRESSES = ("Ledger/a", "Ledger/d", "Strict/a", "Strict/e", "Tight/d")
FORWARDED_TO = ("Ledger/a", "Strict/e")


@dataclass(frozen=True)
class Note:
    text: str


@dataclass(frozen=True)
class Fail:
    text: str


@dataclass(frozen=True)
class Flaky:
    text: str
    failures: int


@dataclass(frozen=True)
class Forward:
    text: str
    to: str
    key: str | None


@dataclass(frozen=True)
class Book:
    text: str


@dataclass(frozen=True)
class Close:
    pass


@dataclass(frozen=True)
class Delete:
    """What `entities.delete` sends."""


Call = Delete | Note | Fail | Flaky | Forward | Book | Close


@dataclass(frozen=True)
class Send:
    """One send of a script; instants are whole hours from now."""

    to: str
    call: Call
    key: str | None = None
    due_in_h: int | None = None
    expires_in_h: int | None = None

    @property
    def operation(self) -> str:
        return DELETION if isinstance(self.call, Delete) else type(self.call).__name__.lower()

    @property
    def arguments(self) -> dict[str, Any]:
        return dataclasses.asdict(self.call)

    def prepared(self, entities: EntityCelery, **options: Any) -> LibraryCall[Any, Any]:
        """The library's call, with its options."""
        call: LibraryCall[Any, Any] = getattr(entities.ref(self.to), self.operation)
        is_past = self.due_in_h is not None and self.due_in_h < 0
        return call.options(
            key=self.key,
            delay_s=None if self.due_in_h is None or is_past else self.due_in_h * HOUR_S,
            deliver_at=datetime.now(UTC) + timedelta(hours=self.due_in_h or 0) if is_past else None,
            expires_s=None if self.expires_in_h is None else self.expires_in_h * HOUR_S,
            **options,
        )

    def __repr__(self) -> str:
        given = [f"{self.to!r}, {self.call}"]
        given += [f"{f}={v!r}" for f in ("key", "due_in_h", "expires_in_h") if (v := getattr(self, f)) is not None]
        return f"Send({', '.join(given)})"


def make_ledgers(url: str, cluster: str, *, batch_size: int = 200, commits_each_turn: bool = False) -> EntityCelery:
    """Entities whose drains end only when there is nothing left to do."""
    entities = make_entities(
        url,
        cluster,
        shards_per_group=SHARDS,
        batch_size=batch_size,
        batch_budget_s=1e-9 if commits_each_turn else 60.0,
        drain_budget_s=300.0,
        max_crashes=MAX_CRASHES,
    )
    entities.register(Ledger)
    entities.register(on_failure="block")(Strict)
    entities.register(mailbox_capacity=CAPACITY)(Tight)
    return entities


def make_empty(entities: EntityCelery) -> None:
    """Forget everything that an earlier script left."""
    store = entities.store
    serial = "INTEGER PRIMARY KEY AUTOINCREMENT" if store.dialect.name == "sqlite" else "serial PRIMARY KEY"
    change(store, f"CREATE TABLE IF NOT EXISTS booked (seq {serial}, text TEXT NOT NULL)")
    tables = ["{message}", "{reply}", "{state}", "{dead_letter}", "{in_flight}", "booked"]
    for table in tables + (["lock"] if store.dialect.name == "sqlite" else []):
        change(store, f"DELETE FROM {table}")  # noqa: S608 - constants
