"""Ringing beside the sender."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from entitycelery.address import ShardId
from entitycelery.transports.later import LaterRinger, _Agenda

FIRST, SECOND = ShardId("default", 1), ShardId("default", 2)


def test_what_was_put_has_been_rung_after_a_flush() -> None:
    rung: list[ShardId] = []
    later = LaterRinger(rung.extend)

    later.put([FIRST])
    later.put([SECOND])
    later.flush()

    assert rung == [FIRST, SECOND]


def test_a_ring_that_fails_is_not_the_last_one() -> None:
    rung: list[ShardId] = []

    def ring(shards: Sequence[ShardId]) -> None:
        if FIRST in shards:
            raise ValueError("no such broker")
        rung.extend(shards)

    later = LaterRinger(ring)
    later.put([FIRST])
    later.flush()

    later.put([SECOND])
    later.flush()

    assert rung == [SECOND]


def test_a_shard_that_was_rung_a_moment_ago_is_rung_again_a_moment_later_and_once() -> None:
    agenda = _Agenda()
    assert agenda.next_in_s(0.0) is None
    agenda.add([[FIRST]], 10.0)
    assert agenda.next_in_s(10.0) == 0.0
    assert agenda.take(10.0, everything=False) == [FIRST]

    agenda.add([[FIRST, SECOND], [FIRST]], 10.01)

    assert agenda.take(10.01, everything=False) == [SECOND]
    assert agenda.next_in_s(10.02) == pytest.approx(0.03)
    assert agenda.take(10.04, everything=False) == []
    assert agenda.take(10.051, everything=False) == [FIRST]
    assert agenda.next_in_s(10.051) is None


def test_whoever_waits_for_a_flush_has_everything_rung() -> None:
    agenda, flush = _Agenda(), threading.Event()
    agenda.add([[FIRST]], 10.0)
    agenda.take(10.0, everything=False)

    assert agenda.add([[SECOND, FIRST], flush], 10.01) == [flush]

    assert agenda.take(10.01, everything=True) == [FIRST, SECOND]
