"""Exceptions of the test applications, importable in workers and in the tests."""

from __future__ import annotations


class InsufficientFunds(Exception):
    """The account holds `balance`, which is less than `amount`."""

    def __init__(self, balance: int, amount: int) -> None:
        super().__init__(balance, amount)
        self.balance = balance
        self.amount = amount


class NotReady(Exception):
    """Try again later."""
