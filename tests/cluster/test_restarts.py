"""PostgreSQL restarts: every lease is lost with its session, and held again by one runner soon after."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.chaos.servers import own_postgres
from tests.cluster.clusters import MakeCluster
from tests.embedded_postgres import EmbeddedPostgres
from tests.services import fresh_postgres_database


@pytest.fixture
def server() -> Iterator[tuple[EmbeddedPostgres, str]]:
    """A server of the test's own, and a database on it."""
    server, url = own_postgres()
    with fresh_postgres_database(url) as database:
        yield server, database
    server.stop()


@pytest.mark.chaos
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_leases_are_held_again_by_one_runner_each_after_postgres_restarted(
    new_cluster: MakeCluster, server: tuple[EmbeddedPostgres, str], how: signal.Signals
) -> None:
    cluster = new_cluster("redis", entity_database_url=server[1])
    nodes = cluster.start(2)
    cluster.wait_until_stable(*nodes)
    before = cluster.placement()
    cluster.load()
    cluster.ask_each()

    cluster.restart_postgres(server[0], how)

    cluster.wait_until_stable(*nodes)
    cluster.ask_each()
    cluster.verdict()
    # A session that was lost is nobody's any more: its runner came back as another one.
    assert not {one.instance for one in before.runners} & {one.instance for one in cluster.placement().runners}
