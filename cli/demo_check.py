"""What the demo sends, and the check of what became of it: ledgers in, verdict out.

Reads nothing and trusts no sum alone: two errors can cancel in a sum, not in a ledger.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

OPENING_BALANCE = 10_000
_LARGEST_AMOUNT = 100


class Transfer(msgspec.Struct, frozen=True):
    """One transfer as it was sent: by which sender, as which of its messages."""

    number: int
    amount: int
    source: str
    target: str
    sender: str
    sequence: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line of a ledger: a transfer's number and amount, who sent it here, as which of its messages."""

    number: int
    amount: int
    sender: str
    sequence: int


class Ledger(msgspec.Struct):
    """The state of an account as stored."""

    balance: int = OPENING_BALANCE
    debits: list[Entry] = []
    credits: list[Entry] = []
    last_sequence: dict[str, int] = {}


@dataclass(frozen=True)
class Verdict:
    """What the ledgers say about the transfers."""

    sent: int
    applied: int
    lost: int
    doubled: int
    strange: int
    """Entries that no transfer accounts for."""
    out_of_order: int
    """Places where a sender's sequence does not ascend, or is not as the account remembers it."""
    unbalanced: int
    """Accounts whose balance is not what their ledger adds up to."""
    money_before: int
    money_after: int
    missing: tuple[int, ...]
    """The numbers of the lost transfers."""

    @property
    def ok(self) -> bool:
        wrong = self.lost + self.doubled + self.strange + self.out_of_order + self.unbalanced
        return not wrong and self.applied == self.sent > 0 and self.money_before == self.money_after


def plan(transfers: int, accounts: Sequence[str], senders: int, rng: random.Random) -> list[Transfer]:
    """Transfers between random accounts, as many from each, dealt out to the senders in turn."""
    sources = [accounts[number % len(accounts)] for number in range(transfers)]
    rng.shuffle(sources)
    planned = []
    for number, source in enumerate(sources):
        target = rng.choice([account for account in accounts if account != source])
        sequence, sender = divmod(number, senders)
        amount = rng.randint(1, _LARGEST_AMOUNT)
        planned.append(Transfer(number, amount, source, target, f"sender-{sender}", sequence + 1))
    return planned


def check(transfers: Sequence[Transfer], ledgers: Mapping[str, Ledger], accounts: Iterable[str]) -> Verdict:
    """Whether each transfer is written exactly once on both sides, in the order of each sender."""
    debits = Counter((account, e) for account, ledger in ledgers.items() for e in ledger.debits)
    credited = Counter((account, e) for account, ledger in ledgers.items() for e in ledger.credits)
    # The receiving side's sequence was drawn by the paying account: the place of the transfer in its ledger.
    places = {
        (account, e.number): place
        for account, ledger in ledgers.items()
        for place, e in enumerate(ledger.debits, start=1)
    }
    sides = [
        (
            debits.pop((t.source, Entry(t.number, t.amount, t.sender, t.sequence)), 0),
            credited.pop((t.target, Entry(t.number, t.amount, t.source, places.get((t.source, t.number), 0))), 0),
        )
        for t in transfers
    ]
    everybody = {account: ledgers.get(account, Ledger()) for account in {*accounts, *ledgers}}
    return Verdict(
        sent=len(transfers),
        applied=sum(side == (1, 1) for side in sides),
        lost=sum(0 in side for side in sides),
        doubled=sum(max(side) > 1 for side in sides),
        strange=debits.total() + credited.total(),
        out_of_order=sum(map(_out_of_order, ledgers.values())),
        unbalanced=sum(map(_unbalanced, ledgers.values())),
        money_before=OPENING_BALANCE * len(everybody),
        money_after=sum(ledger.balance for ledger in everybody.values()),
        missing=tuple(t.number for t, side in zip(transfers, sides, strict=True) if 0 in side),
    )


def _out_of_order(ledger: Ledger) -> int:
    last: dict[str, int] = {}
    wrong = 0
    for entries in (ledger.debits, ledger.credits):
        for entry in entries:
            wrong += entry.sequence <= last.get(entry.sender, 0)
            last[entry.sender] = entry.sequence
    return wrong + (last != ledger.last_sequence)


def _unbalanced(ledger: Ledger) -> bool:
    paid, received = sum(e.amount for e in ledger.debits), sum(e.amount for e in ledger.credits)
    return ledger.balance != OPENING_BALANCE - paid + received
