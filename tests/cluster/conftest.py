"""Clusters of real workers; a failing test shows what the workers said, and the seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.celery.banks import open_bank
from tests.celery.conftest import end_in_order_when_terminated, pytest_runtest_makereport  # noqa: F401
from tests.chaos.conftest import seed  # noqa: F401
from tests.cluster.clusters import FAST, SHARDS, Cluster, MakeCluster
from tests.services import Services


@pytest.fixture
def new_cluster(services: Services, tmp_path: Path, seed: int) -> Iterator[MakeCluster]:  # noqa: F811
    """Makes clusters for one test, quick to give somebody up: `new_cluster("redis", entity_lock_mode="rows")`."""
    with ExitStack() as stack:
        count = 0

        def make(broker: str, *, store: str | None = None, module: str = "tests.cluster.app", **conf: Any) -> Cluster:
            nonlocal count
            count += 1
            settings = {"entity_shards_per_group": SHARDS, **FAST, **conf}
            bank = stack.enter_context(open_bank(services, tmp_path / f"c{count}", broker, store=store, **settings))
            cluster = Cluster(bank, seed, module)
            stack.callback(cluster.close)
            return cluster

        yield make
