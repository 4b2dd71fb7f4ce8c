"""A deadline for every answer of PostgreSQL, kept on this side of the network.

A server's own time-outs are of no use when nothing comes from it any more, and TCP notices that late. For processes
of our own only: the driver's hook is one for the whole process.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2 import extensions

_deadlines = threading.local()


def answer_within(default_s: float) -> None:
    """From now on every answer in this process must come within `default_s`, or as `answers_within` says.

    A connection whose answer came late is closed, and the statement fails as if the server had gone.
    """

    def wait(connection: Any) -> None:
        given_s: float = getattr(_deadlines, "given_s", default_s)
        ends_s = time.monotonic() + given_s
        while (state := connection.poll()) != extensions.POLL_OK:
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                raise psycopg2.OperationalError(f"the server has not answered within {given_s:g} s")
            reading = [connection] if state == extensions.POLL_READ else []
            writing = [connection] if state == extensions.POLL_WRITE else []
            select.select(reading, writing, [], left_s)

    extensions.set_wait_callback(wait)


@contextmanager
def answers_within(deadline_s: float) -> Iterator[None]:
    """Another deadline for what this thread asks meanwhile; without `answer_within` there is none."""
    before = getattr(_deadlines, "given_s", None)
    _deadlines.given_s = deadline_s
    try:
        yield
    finally:
        if before is None:
            del _deadlines.given_s
        else:
            _deadlines.given_s = before
