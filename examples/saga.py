"""An order that takes a payment, stock and a parcel, and gives back what it took when one of them fails.

celery -A saga worker
python saga.py
"""

import importlib

from celery import Celery

from entitycelery import Entity, EntityCelery, Workflow, handler

app = Celery("saga")
entities = EntityCelery(app)


@entities.register
class Stock(Entity):
    """How much there is of something."""

    left: int = 0

    @handler
    def add(self, amount: int) -> int:
        """Put it on the shelf, or back."""
        self.left += amount
        return self.left

    @handler(throws=(ValueError,))
    def take(self, amount: int) -> int:
        """Take it from the shelf, if there is so much."""
        if amount > self.left:
            raise ValueError(f"{self.left} of {self.turn.id} left")
        self.left -= amount
        return self.left


@entities.register
class Bank(Entity):
    """What the customers have paid."""

    paid: int = 0

    @handler
    def pay(self, amount: int) -> int:
        """Take a payment; a negative one is a refund."""
        self.paid += amount
        return self.paid


@entities.workflow
def order(flow: Workflow, items: dict[str, int], price: int) -> str:
    """Everything, or nothing."""
    flow.ask(Bank.ref("bank").pay, price)
    flow.compensate(refund, price)
    for name, amount in items.items():
        flow.ask(Stock.ref(name).take, amount)
        flow.compensate(put_back, name, amount)
    return f"{len(items)} items"


def refund(price: int) -> None:
    """A compensation. Its message is part of the commit that remembers it."""
    Bank.ref("bank").pay.send(-price)


def put_back(name: str, amount: int) -> None:
    """Another one."""
    Stock.ref(name).add.send(amount)


def main() -> None:
    """One order goes through, and of the other one nothing is left."""
    for name in ("tea", "cup"):
        Stock.ref(name).add.ask(3)

    good = order.options(key="17").start({"tea": 2, "cup": 1}, 10)
    print("order 17:", good.result())
    bad = order.options(key="18").start({"cup": 2, "tea": 2}, 10)
    try:
        bad.result()
    except ValueError as exc:
        print("order 18:", exc)

    print("undone:", [entry.name for entry in bad.history() if entry.kind == "undo"])
    tea, cups = (Stock.ref(name).add.ask(0) for name in ("tea", "cup"))
    print(f"{tea} tea, {cups} cups, {Bank.ref('bank').pay.ask(0)} paid")


if __name__ == "__main__":
    importlib.import_module("saga").main()
