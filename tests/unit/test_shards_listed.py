"""Who holds which shard, put together from runners, leases and loads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from cli.runners import state_of
from entitycelery.address import ShardId
from entitycelery.client.hosting import holder_of, statuses
from entitycelery.placement import Lease, Placement, Runner, ShardLoad

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)
ONE = Runner(
    instance="i1",
    worker="w1",
    address="one@host",
    host="host",
    pid=1,
    groups=("default",),
    weight=1.0,
    pool="prefork",
    library_version="1",
    app_version=None,
    machine_id=0,
    started_at=NOON,
    seen_at=NOON,
    unseen_s=0.5,
    starved=False,
    leaving=False,
    locked=True,
)
HELD, GONE, FREE = ShardId("default", 0), ShardId("default", 1), ShardId("default", 2)
LEASES = (Lease(HELD, "i1", 3, NOON), Lease(GONE, "a runner that died", 2, NOON), Lease(FREE, None, 1, None))
PLACEMENT = Placement((ONE,), LEASES)


def test_the_holder_is_a_registered_runner() -> None:
    assert holder_of(PLACEMENT, HELD) == ONE
    assert [holder_of(PLACEMENT, shard) for shard in (GONE, FREE, ShardId("default", 3))] == [None] * 3


def test_every_shard_of_a_known_group_is_listed_whether_or_not_it_ever_had_a_holder() -> None:
    found = statuses(PLACEMENT, [ShardLoad(GONE, 2, 1.5), ShardLoad(ShardId("lost", 9), 1, 60.0)], ["gpu"], 4)

    every = [ShardId(group, number) for group in ("default", "gpu", "lost") for number in range(4)]
    assert [one.shard for one in found] == [*every, ShardId("lost", 9)]
    by_shard = {one.shard: (one.holder, one.since, one.epoch, one.pending, one.oldest_s) for one in found}
    assert by_shard[HELD] == (ONE, NOON, 3, 0, None)
    assert by_shard[GONE] == (None, None, 2, 2, 1.5)
    assert by_shard[ShardId("gpu", 3)] == (None, None, 0, 0, None)
    assert by_shard[ShardId("lost", 9)] == (None, None, 0, 1, 60.0)


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "serving"),
        ({"locked": None}, "serving"),
        ({"starved": True}, "starved"),
        ({"leaving": True, "starved": True}, "leaving"),
        ({"unseen_s": 10.0, "leaving": True}, "unseen"),
        ({"locked": False}, "unseen"),
    ],
)
def test_a_runner_is_in_one_state(fields: dict[str, Any], state: str) -> None:
    assert state_of(msgspec.structs.replace(ONE, **fields), patience_s=10.0) == state
