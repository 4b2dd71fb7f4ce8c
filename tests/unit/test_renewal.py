"""Renewing what drains hold: while there are any, whatever becomes of one renewal."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from entitycelery.exceptions import StoreUnavailable
from entitycelery.storage.sql.dialects.renewal import Renewal
from tests.waiting import eventually

EVERY_S = 0.01


def renewing_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "entitycelery-renewal"}


def test_every_living_drain_is_renewed_and_no_other() -> None:
    renewed: list[Sequence[str]] = []
    renewal = Renewal(renewed.append, EVERY_S)
    renewal.add("one")
    renewal.add("other")

    assert eventually(lambda: ["one", "other"] in renewed)
    renewal.remove("one")

    assert eventually(lambda: renewed[-1] == ["other"])
    renewal.remove("other")


def test_the_thread_ends_with_the_last_drain_and_begins_with_the_next() -> None:
    renewed: list[Sequence[str]] = []
    renewal = Renewal(renewed.append, EVERY_S)
    others = renewing_threads()
    renewal.add("one")
    [thread] = renewing_threads() - others
    renewal.remove("one")
    eventually(lambda: not thread.is_alive())

    renewal.add("two")

    assert eventually(lambda: ["two"] in renewed)
    renewal.remove("two")


def test_a_renewal_that_fails_is_tried_again() -> None:
    failures: list[Exception] = [StoreUnavailable("away"), RuntimeError("broken")]
    renewed: list[Sequence[str]] = []

    def renew(tokens: Sequence[str]) -> None:
        if failures:
            raise failures.pop()
        renewed.append(tokens)

    renewal = Renewal(renew, EVERY_S)
    renewal.add("one")

    assert eventually(lambda: renewed)
    renewal.remove("one")
