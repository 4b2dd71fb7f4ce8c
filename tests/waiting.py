"""Waiting for something to become true: the only place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout_s: float = 30.0, every_s: float = 0.02) -> T:
    """Call `check` until it returns something true, and return that.

    An exception means "not yet", and so does anything false, `None` too: a check made of asserts ends with
    `return True`.

    Raises:
        AssertionError: It did not come true within timeout_s. The message carries the last failure.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        failure: Exception | None = None
        try:
            value = check()
        except Exception as exc:  # noqa: BLE001 - whatever the check raises is "not yet"
            failure = exc
            last = f"{type(exc).__name__}: {exc}"
        else:
            if value:
                return value
            last = f"returned {value!r}"
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {timeout_s} s; last: {last}") from failure
        time.sleep(every_s)
