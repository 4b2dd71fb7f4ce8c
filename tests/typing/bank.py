# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The entities that the other files of this folder call, rightly and wrongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime

from celery import Celery

from entitycelery import Entity, EntityCelery, field, handler, query, shared_entity

app = Celery("bank")
entities = EntityCelery(app)


@dataclasses.dataclass
class Order:
    id: str
    at: datetime


@entities.register
class Account(Entity):
    balance: int = 0
    owner: str = ""
    tags: list[str] = field(default_factory=list[str])

    @handler
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @handler
    def transfer(self, amount: int, to: str, *, note: str = "") -> Order | None:
        self.deposit(-amount)
        Account.ref(to).deposit.options(key=note).send(amount)
        self.deposit.send(amount)
        return None

    @handler
    def request(self, amount: int) -> str:
        return self.expect("approval", then=self.deposit, on_timeout=self.close, timeout_s=60)

    @handler
    def decide(self, amount: int) -> int:
        token: str = self.expect("approval", then=self.deposit)
        self.turn.withdraw(token)
        return self.reply_later()

    @handler(name="close-it", autoretry_for=(OSError,), max_retries=5, retry_backoff=2, turn_timeout_s=10.0)
    def close(self) -> None:
        self.turn.delete()

    @handler
    async def fetch(self, urls: Sequence[str]) -> dict[str, int]:
        await self.fetch_one(urls[0])
        return {}

    @handler(max_retries=None)
    async def fetch_one(self, url: str) -> bytes:
        return b""

    @query
    def statement(self, since: datetime | None = None) -> list[int]:
        return [self.balance]


@entities.register(name="audit", aliases=("log",), state_version=2, on_failure="block", mailbox_capacity=10)
class Audit(Entity):
    count: int = 0

    @handler
    def note(self, text: str) -> int:
        return self.turn.attempt


@shared_entity
class Shared(Entity):
    n: int = 0

    @handler
    def add(self) -> int:
        return self.n


@shared_entity(name="other", on_failure="skip")
class Other(Entity):
    n: int = 0

    @handler
    def add(self) -> int:
        return self.n


alice = Account.ref("alice")
