"""Load on journals and the check of what became of it: each message once, each sender's in order."""

from __future__ import annotations

import threading
from typing import Any

from tests.celery.banks import Bank
from tests.waiting import eventually


class Load:
    """Several senders, each in a thread of its own, each writing to every journal in turn."""

    def __init__(self, bank: Bank, *, senders: int = 3, messages: int = 120, journals: int = 6) -> None:
        self._bank = bank
        self._senders = [f"sender{number}" for number in range(senders)]
        self._journals = [bank.Journal.ref(f"journal{number}") for number in range(journals)]
        self._messages = messages
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._send_all, args=(sender,)) for sender in self._senders]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _send_all(self, sender: str) -> None:
        try:
            for number in range(self._messages):
                journal = self._journals[number % len(self._journals)]
                journal.write_at_leisure.send(sender, number)
        except BaseException as exc:
            self._failures.append(exc)
            raise

    def handled(self) -> int:
        """How many messages have taken effect."""
        return sum(len(self._entries(journal)) for journal in self._journals)

    def await_handled(self, count: int) -> None:
        """Wait until this many messages have taken effect."""
        eventually(lambda: self.handled() >= count, timeout_s=60)

    def assert_each_applied_once_in_order(self, *, within_s: float = 60) -> None:
        """Wait until no message is left, and look at every entry of every journal."""
        assert self._failures == []
        eventually(lambda: self._bank.pending() == 0, timeout_s=within_s, every_s=0.1)
        for index, journal in enumerate(self._journals):
            expected = list(range(index, self._messages, len(self._journals)))
            written = {sender: journal.of(sender) for sender in self._senders}
            assert written == dict.fromkeys(self._senders, expected), f"{journal}"
            assert len(self._entries(journal)) == len(expected) * len(self._senders)

    def _entries(self, journal: Any) -> list[tuple[str, int]]:
        entries: list[tuple[str, int]] = self._bank.entities.state(journal).entries
        return entries
