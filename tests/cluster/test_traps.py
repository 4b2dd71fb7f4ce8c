"""What others fell into and no other file here has: sockets that are inherited, locks that are stuck, last words."""

from __future__ import annotations

import threading
import time

import psutil
import psycopg2
import pytest

from tests.chaos.servers import execute
from tests.cluster.clusters import LEASE_TIMEOUT_S, MakeCluster
from tests.waiting import eventually

LEASE_PORTS = "SELECT client_port FROM pg_stat_activity WHERE application_name LIKE 'entitycelery {} {} %'"


@pytest.mark.chaos
def test_no_process_of_the_pool_inherits_the_lease_connection(new_cluster: MakeCluster) -> None:
    # Else `kill -9` of the parent or of the runner process would free nothing for as long as the pool lives.
    cluster = new_cluster("amqp")
    [node] = cluster.start(1, "--max-tasks-per-child", "1")
    cluster.wait_until_stable()
    # Processes that were forked while the connection was there.
    cluster.ask_each()
    eventually(lambda: len(node.worker.pool_pids()) == 2)

    ports = {port for (port,) in execute(cluster.url, LEASE_PORTS.format(cluster.name, "lease"))}
    assert len(ports) == 1

    def whose() -> set[int]:
        return {
            pid
            for pid in (node.worker.pid, *node.worker.runner_pids(), *node.worker.pool_pids())
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.laddr.port in ports
        }

    # A process that ends after its one task while it is looked at raises: it is looked again.
    assert eventually(whose) == set(node.worker.runner_pids())


@pytest.mark.chaos
def test_no_process_of_the_pool_keeps_the_line_between_parent_and_runner_open(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp")
    [node] = cluster.start()
    cluster.wait_until_stable()
    pool, runner = node.worker.pool_pids(), node.worker.runner_pids()

    cluster.kill(node, "parent")

    # An open end somewhere would keep the runner process from reading the end of its worker.
    eventually(lambda: not any(map(psutil.pid_exists, runner)), timeout_s=5)
    assert pool


@pytest.mark.chaos
def test_a_stuck_lock_on_its_tables_costs_a_runner_its_leases_and_nothing_else(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp")
    [node] = cluster.start()
    cluster.wait_until_stable()
    cluster.load(1)
    [runner] = node.worker.runner_pids()
    somebody = psycopg2.connect(cluster.url)

    with somebody.cursor() as cursor:
        cursor.execute(f"LOCK TABLE entity_{cluster.name}.runner IN ACCESS EXCLUSIVE MODE")
        # The renewal waits, for as long as its deadline and no longer; then others could have the shards.
        began_s = time.monotonic()
        eventually(lambda: "lease lost" in node.worker.log(), timeout_s=10)
        lost_s = time.monotonic() - began_s
        somebody.rollback()
    somebody.close()

    assert lost_s < LEASE_TIMEOUT_S + 1
    cluster.wait_until_stable()
    assert node.worker.runner_pids() == [runner]
    assert cluster.ask_each() < 5
    cluster.verdict()


@pytest.mark.chaos
def test_finalizers_that_send_do_not_hold_a_shutdown_up(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp", says_goodbye=True)
    ends, stays = cluster.start(2)
    cluster.wait_until_stable()
    pool = ends.worker.pool_pids()

    took_s = cluster.stop(ends)

    assert took_s < 8
    # The parent says it twice, each process of the pool once; all of it is stored, and handled by who is left.
    goodbyes = cluster.play.ledger("goodbyes")
    eventually(lambda: len(cluster.play.entities.state(goodbyes).entries) == 2 + len(pool))
    cluster.wait_until_stable(stays)


@pytest.mark.chaos
def test_a_claimed_message_that_a_drain_skipped_is_handled_as_soon_as_it_is_free(new_cluster: MakeCluster) -> None:
    cluster = new_cluster("amqp", entity_refresh_interval_s=2.0, entity_lease_timeout_s=10.0)
    cluster.start(2)
    cluster.wait_until_stable()
    ledger = cluster.probe(0)
    folder = cluster.stage.folder
    first = ledger.append_when.send("first", str(folder / "began"), str(folder / "may-end"))
    eventually((folder / "began").exists)

    # Its entity is claimed: whoever drains the shard skips it.
    second = ledger.append.send("second")
    threading.Timer(0.3, (folder / "may-end").touch).start()
    assert first.result(timeout_s=10) == 0
    began_s = time.monotonic()

    assert second.result(timeout_s=10) == 1
    # Not at the next sweep.
    assert time.monotonic() - began_s < 0.5
