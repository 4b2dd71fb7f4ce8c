"""Turns that run too long. The clock is moved by hand: the watch's look is called with a later time."""

from __future__ import annotations

import time

import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import TurnTimeout
from tests.client.support import drain
from tests.runtime.support import HOOKS, Puppet

puppet = Puppet.ref


def test_a_turn_that_took_too_long_has_failed_though_it_ends_well(entities: EntityCelery) -> None:
    def take_long(self: Puppet) -> None:
        [running] = entities.host.watch._watched
        running.look_at_clock(time.monotonic() + 1_000)
        self.count += 100

    HOOKS["long"] = take_long
    sent, behind = entities.send_many([puppet("p").act.prepare("long"), puppet("p").add.prepare(1)])

    drain(entities)

    with pytest.raises(TurnTimeout, match="longer than 300 s"):
        sent.result(timeout_s=5)
    assert behind.result(timeout_s=5) == 1
    assert entities.state(puppet("p")) == Puppet(count=1)
