"""Waiting by polling, where nothing can announce."""

from __future__ import annotations

import time


class PollingWaiter:
    """Pauses that grow from `first_s` to `longest_s`, each half as long again as the one before; announces nothing.

    So whoever waits is told late by at most a third of the time that it took.
    """

    channel: str | None = None

    def __init__(self, longest_s: float, *, first_s: float = 0.002) -> None:
        self._next_s = first_s
        self._longest_s = longest_s

    def fileno(self) -> int | None:
        return None

    def take(self) -> list[str]:
        """Nothing is ever announced."""
        return []

    def heard(self, message_id: str) -> str | None:
        return None

    def wait(self, timeout_s: float) -> bool:
        time.sleep(min(timeout_s, self._next_s))
        self._next_s = min(self._longest_s, self._next_s * 1.5)
        return False
