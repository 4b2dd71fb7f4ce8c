"""An app whose entities wait for signals."""

from __future__ import annotations

import json
import os

from celery import Celery

from entitycelery import Entity, EntityCelery, Failure, handler

app = Celery("approvals")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))
entities = EntityCelery(app)


@entities.register
class Order(Entity):
    """Keeps how its signal ended, each time; its sums of all ends are kept by others."""

    ends: list[str] = []

    @handler
    def expect_payment(self, timeout_s: float) -> str:
        return self.expect(
            "payment", then=self.paid, on_timeout=self.forgotten, on_failure=self.refused, timeout_s=timeout_s
        )

    @handler
    def await_payment(self, timeout_s: float) -> str:
        self.expect_payment(timeout_s)
        return self.reply_later()

    @handler
    def paid(self, amount: int) -> str:
        return self._end(f"paid {amount}")

    @handler
    def forgotten(self) -> str:
        return self._end("forgotten")

    @handler
    def refused(self, failure: Failure) -> str:
        return self._end(failure.message)

    @handler
    def pay_for(self, other: str, amount: int) -> None:
        """Complete another order's signal, as part of this turn."""
        entities.signal(f"Order/{other}", "payment").succeed(amount)

    def _end(self, how: str) -> str:
        self.ends.append(how)
        Ends.ref(hash_of(self.turn.id)).count.send()
        return how


@entities.register
class Ends(Entity):
    """Counts ends, so that one that is handled twice would also send twice."""

    number: int = 0

    @handler
    def count(self) -> None:
        self.number += 1


def hash_of(order: str) -> str:
    """To which of four counters an order's end goes."""
    return str(sum(order.encode()) % 4)
