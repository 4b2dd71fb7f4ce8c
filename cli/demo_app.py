"""The application of `entitycelery demo`: accounts that transfer money and write down every transfer.

An ordinary Celery app, hosted by an ordinary `celery worker`. The store and the cluster come from ENTITY_DATABASE_URL
and ENTITY_CLUSTER; without a broker in ENTITY_DEMO_BROKER nothing is configured, and a folder beside the store serves.
"""

from __future__ import annotations

import os

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

from .demo_check import OPENING_BALANCE, Entry

BROKER_VARIABLE = "ENTITY_DEMO_BROKER"

app = Celery("entitycelery.demo")
app.conf.update(
    # On a broker that others use too, this run sees nobody and is seen by nobody.
    task_default_queue=f"entity_demo.{os.environ.get('ENTITY_CLUSTER', 'default')}",
    worker_enable_remote_control=False,
)
if broker := os.environ.get(BROKER_VARIABLE):
    app.conf.update(broker_url=broker)
    if broker.startswith("folder://"):
        app.conf.update(broker_transport="entitycelery.transports.folder:Transport")

entities = EntityCelery(app)


class InsufficientFunds(Exception):
    """The account does not hold the amount."""


@entities.register
class Account(Entity):
    """An account whose state is its balance and the ledger of how it came about."""

    balance: int = OPENING_BALANCE
    debits: list[Entry] = []
    credits: list[Entry] = []
    last_sequence: dict[str, int] = {}

    @handler
    def transfer(self, number: int, amount: int, to: str, sender: str, sequence: int) -> int:
        """Pay `amount` to another account: the message to it is part of this turn's commit."""
        if amount > self.balance:
            raise InsufficientFunds(self.balance)
        self.balance -= amount
        self.debits.append(Entry(number, amount, sender, sequence))
        self.last_sequence[sender] = sequence
        Account.ref(to).receive.send(number, amount, sender=self.turn.id, sequence=len(self.debits))
        return self.balance

    @handler
    def receive(self, number: int, amount: int, sender: str, sequence: int) -> int:
        """Take the other side of a transfer."""
        self.balance += amount
        self.credits.append(Entry(number, amount, sender, sequence))
        self.last_sequence[sender] = sequence
        return self.balance

    @handler
    def report_balance(self) -> int:
        """The balance, as an answer to a message."""
        return self.balance
