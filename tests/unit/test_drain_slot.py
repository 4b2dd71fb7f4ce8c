"""A drain that begins late asks first whose its shards are. The entities here only take down what is drained."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from entitycelery.address import ShardId
from entitycelery.placement import WORKER_VARIABLE, Placement
from entitycelery.settings import Settings
from entitycelery.worker import drain_slot
from entitycelery.worker.drain_slot import run_drain
from entitycelery.worker.link import now_s
from tests.unit.test_shards_listed import FREE, GONE, HELD, ONE, PLACEMENT

LATE_S = 2.0
SETTINGS = Settings(starved_after_s=LATE_S, lease_timeout_s=10.0)
SHARDS = [HELD.number, GONE.number, FREE.number]


class Entities:
    """What a drain finds in its process."""

    def __init__(self, placement: Callable[[], Placement]) -> None:
        self.settings = SETTINGS
        self.store = SimpleNamespace(placement=placement)
        self.host = SimpleNamespace(drain=self._drain)
        self.drained: list[list[ShardId]] = []

    def _drain(self, *shards: ShardId, may_end_process: bool) -> Any:
        assert not may_end_process
        self.drained.append(list(shards))
        return SimpleNamespace(more=True, unknown=())


@pytest.fixture
def entities(monkeypatch: pytest.MonkeyPatch) -> Entities:
    made = Entities(lambda: PLACEMENT)
    monkeypatch.setattr(drain_slot, "current_entities", lambda: made)
    monkeypatch.setenv(WORKER_VARIABLE, ONE.worker)
    return made


def test_a_drain_that_begins_in_time_asks_nobody(entities: Entities) -> None:
    entities.store = SimpleNamespace()

    assert run_drain("default", SHARDS, False, now_s()) == (True, [])

    assert entities.drained == [[HELD, GONE, FREE]]


def test_a_drain_that_begins_late_leaves_out_what_its_worker_does_not_hold_any_more(entities: Entities) -> None:
    assert run_drain("default", SHARDS, False, now_s() - LATE_S) == (True, [])

    assert entities.drained == [[HELD]]


def test_a_drain_that_begins_late_in_a_former_holder_begins_nothing(
    entities: Entities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKER_VARIABLE, "another")

    assert run_drain("default", SHARDS, False, now_s() - LATE_S) == (False, [])

    assert entities.drained == []
