"""Transfers between accounts.

celery -A bank worker
python bank.py
"""

import importlib

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

app = Celery("bank")
entities = EntityCelery(app)


class InsufficientFunds(Exception):
    """The account does not hold the amount."""


@entities.register
class Account(Entity):
    """An account; its balance is durable."""

    balance: int = 0

    @handler
    def deposit(self, amount: int) -> int:
        """Add to the balance."""
        self.balance += amount
        return self.balance

    @handler
    def transfer(self, amount: int, to: str) -> int:
        """Pay another account. Its deposit is stored in the same commit as our balance."""
        if amount > self.balance:
            raise InsufficientFunds(self.balance)
        self.balance -= amount
        Account.ref(to).deposit.send(amount)
        return self.balance


def main() -> None:
    """Move money around a ring of accounts; the sum stays."""
    ring = [Account.ref(name) for name in ("alice", "bob", "carol")]
    for account in ring:
        account.deposit.ask(100)
    before = total(ring)

    calls = [
        payer.transfer.prepare(1, to=payee)
        for _ in range(50)
        for payer, payee in zip(ring, ("bob", "carol", "alice"), strict=True)
    ]
    for sent in entities.send_many(calls):
        sent.result()
    for account in ring:
        # Each deposit was stored before the result above; so it stands in front of this message.
        account.deposit.ask(0)
    print(f"{len(calls)} transfers, money before {before}, after {total(ring)}")

    try:
        ring[0].transfer.ask(1_000_000, to="bob")
    except InsufficientFunds as exc:
        print(f"refused, {exc} left")


def total(accounts: list[Account]) -> int:
    """The committed money of all accounts."""
    return sum(entities.state(account).balance for account in accounts)


if __name__ == "__main__":
    # As the module, not as __main__: the exception that comes back from the worker is bank.InsufficientFunds.
    importlib.import_module("bank").main()
