"""A whole machine is gone: nobody tells the database, whose connections to it stay half open."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.clusters import LEASE_TIMEOUT_S, Cluster, MakeCluster
from tests.cluster.far import HERE, FarMachine, far_machine
from tests.cluster.nodes import Node
from tests.embedded_postgres import EmbeddedPostgres
from tests.services import fresh_postgres_database

# Server-side keepalives: 5 s of silence, then three probes, 3 s apart; what is sent meanwhile has 15 s.
NOTICED_WITHIN_S = 15.0
ON_A_BUSY_MACHINE_S = 2.0
NO_EVICTION = {"entity_lease_timeout_s": 60.0, "entity_refresh_interval_s": 1.0}


@pytest.fixture
def far() -> Iterator[FarMachine]:
    with far_machine() as machine:
        yield machine


@pytest.fixture
def reachable_url(far: FarMachine) -> Iterator[str]:
    """A database that the far machine reaches."""
    server = EmbeddedPostgres(host=HERE)
    try:
        try:
            url = server.start()
        except RuntimeError as exc:
            pytest.skip(f"PostgreSQL of our own: {exc}")
        with fresh_postgres_database(url) as database:
            yield database
    finally:
        server.stop()


def near_and_far(new_cluster: MakeCluster, far: FarMachine, url: str, **conf: float) -> tuple[Cluster, Node, Node]:
    cluster = new_cluster("folder", store="postgresql", entity_database_url=url, **conf)
    [near] = cluster.start()
    [gone] = far.start(cluster.start)
    cluster.wait_until_stable()
    return cluster, near, gone


@pytest.mark.chaos_long
@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "told something"])
def test_a_machine_that_is_gone_is_noticed_by_the_servers_keepalives(
    new_cluster: MakeCluster, far: FarMachine, reachable_url: str, is_idle: bool
) -> None:
    cluster, _, gone = near_and_far(new_cluster, far, reachable_url, **NO_EVICTION)
    shards = sorted(cluster.shards_of(gone))
    began_s = time.time()

    far.lose()
    if not is_idle:
        # A notification goes to the machine that is gone: what nobody acknowledges keeps the probes from being sent.
        cluster.start()
    took_s = time.time() - began_s
    took_s += cluster.ask_each(shards)

    print(f"the shards of a machine that was gone were served {took_s:.1f} s later")
    assert took_s < NOTICED_WITHIN_S + ON_A_BUSY_MACHINE_S
    far.find()
    cluster.wait_until_stable()
    assert cluster.ask_each() < 5
    cluster.assert_invariants()


@pytest.mark.chaos_long
def test_a_machine_that_is_gone_is_evicted_before_where_that_is_sooner(
    new_cluster: MakeCluster, far: FarMachine, reachable_url: str
) -> None:
    cluster, near, gone = near_and_far(new_cluster, far, reachable_url)
    cluster.load()
    shards = sorted(cluster.shards_of(gone))

    far.lose()
    took_s = cluster.ask_each(shards)
    cluster.wait_until_stable(near)

    assert took_s < LEASE_TIMEOUT_S + ON_A_BUSY_MACHINE_S
    far.find()
    cluster.wait_until_stable()
    cluster.verdict()
