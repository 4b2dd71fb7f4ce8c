"""What is tested with the kit."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

from entitycelery import Entity, EntityCelery, Failure, handler

OUTSIDE: list[str] = []
"""What handlers did where no commit reaches."""


class ShakyError(Exception):
    """An error that passes."""


def register(entities: EntityCelery) -> Any:
    @entities.register
    class Account(Entity):
        balance: int = 0

        @handler
        def deposit(self, amount: int) -> int:
            self.balance += amount
            return self.balance

        @handler
        def transfer(self, amount: int, to: str) -> int:
            self.balance -= amount
            Account.ref(to).deposit.send(amount)
            return self.balance

        @handler
        def charge_card(self, amount: int) -> None:
            """Charges outside, and so twice if it is cut short."""
            OUTSIDE.append(f"{self.turn.message_id} {amount}")
            self.balance += amount

        @handler(autoretry_for=(ShakyError,), max_retries=3, retry_backoff=60, retry_jitter=False)
        def shaky(self) -> int:
            if self.turn.attempt < 2:
                raise ShakyError
            return self.turn.attempt

        @handler
        async def fetch(self) -> int:
            return self.balance

    @entities.register
    class Order(Entity):
        status: str = "new"
        reminders: list[datetime] = []

        @handler
        def place(self) -> str:
            self.remind("nudge", self.nudge, every_s=86_400)
            return self.expect(
                "payment", then=self.paid, on_timeout=self.expire, on_failure=self.refused, timeout_s=3 * 86_400 + 60
            )

        @handler
        def checkout(self) -> str:
            self.place()
            return self.reply_later()

        @handler
        def nudge(self) -> None:
            self.reminders.append(datetime.min)

        @handler
        def paid(self, amount: int) -> str:
            self.turn.cancel_timer("nudge")
            self.status = f"paid {amount}"
            Account.ref("shop").deposit.send(amount)
            return self.status

        @handler
        def refused(self, failure: Failure) -> str:
            self.status = failure.message
            return self.status

        @handler
        def expire(self) -> str:
            self.turn.cancel_timer("nudge")
            self.status = "expired"
            return self.status

    @entities.register
    class Report(Entity):
        days: list[str] = []

        @entities.cron("30 2 * * *", timezone="Europe/Berlin", misfire="all", entity_id="daily")
        @handler
        def write(self, scheduled_at: datetime) -> None:
            self.days.append(scheduled_at.strftime("%m-%d"))

    return SimpleNamespace(entities=entities, Account=Account, Order=Order, Report=Report)
