"""Runners as a look at the store would find them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from entitycelery.placement import Runner

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

_RUNNER = Runner(
    instance="i-a",
    worker="w-a",
    address="a@host-a",
    host="host-a",
    pid=100,
    groups=("default",),
    weight=1.0,
    pool="prefork",
    library_version="0.1.0",
    app_version=None,
    machine_id=0,
    started_at=NOON - timedelta(hours=1),
    seen_at=NOON,
    unseen_s=5.0,
    starved=False,
    leaving=False,
    locked=None,
)


def runner(name: str, **other: Any) -> Runner:
    """A runner that has not been seen for a while; `name` tells it from others, `other` are fields of its own."""
    own = {"instance": f"i-{name}", "worker": f"w-{name}", "address": f"{name}@host-{name}", "host": f"host-{name}"}
    return msgspec.structs.replace(_RUNNER, **{**own, **other})
