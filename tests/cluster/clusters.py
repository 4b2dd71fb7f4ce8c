"""A cluster: workers on one store and one broker, what can be done to them, and what they must hold to meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from entitycelery.address import ShardId, shard_of
from entitycelery.placement import Placement, Runner
from entitycelery.sharding.assignment import assigned
from tests.celery.banks import Bank
from tests.chaos.conftest import Play
from tests.chaos.stages import Stage
from tests.cluster.invariants import DRAINS, Drain, Sampler, drains_in, holders_by_locks, late_drains, lease_lines
from tests.cluster.nodes import Node, Part
from tests.cluster.wires import Wire
from tests.embedded_postgres import EmbeddedPostgres
from tests.history import Operation
from tests.storage.support import query
from tests.waiting import eventually

REFRESH_S = 0.2
LEASE_TIMEOUT_S = 2.0
SHARDS = 8
FAST = {"entity_refresh_interval_s": REFRESH_S, "entity_lease_timeout_s": LEASE_TIMEOUT_S, "entity_health": "noop"}
"""What makes a freeze of seconds enough."""


class Cluster:
    """Workers of tests/cluster/app.py, or another app, the clients of the chaos tests, and a look from outside."""

    def __init__(self, bank: Bank, seed: int, module: str = "tests.cluster.app") -> None:
        self._bank = bank
        self.conf = bank.conf
        self.name: str = bank.conf["entity_cluster"]
        self.url: str = bank.conf["entity_database_url"]
        self.shards = [ShardId("default", number) for number in range(bank.conf["entity_shards_per_group"])]
        # Its name is part of the nodes' names, and clusters on one broker hear each other's.
        self.stage = Stage(bank.folder / self.name, bank.conf, seed, module=module)
        self.play = Play(self.stage, bank.conf)
        self.nodes: list[Node] = []
        self._sampler = Sampler(self.url, self.name) if self.has_session_locks else None

    @property
    def has_session_locks(self) -> bool:
        return self.url.startswith("postgresql") and self.conf.get("entity_lock_mode") != "rows"

    # What can be done

    def start(self, count: int = 1, *options: str, wired: bool = False, **how: Any) -> list[Node]:
        """Start workers, wait until each consumes something; `wired`: with wires of their own that can be cut."""
        started = [self._start(options, wired, how) for _ in range(count)]
        for node in started:
            node.worker.await_ready()
        self.nodes += started
        self.stage.workers = [node.worker for node in self.nodes]
        return started

    def _start(self, options: Sequence[str], wired: bool, how: dict[str, Any]) -> Node:
        database = Wire(self.url) if wired and self.url.startswith("postgresql") else None
        broker = Wire(self.conf["broker_url"]) if wired and "broker_url" in self.conf else None
        if database is not None:
            how = {**how, "entity_database_url": database.url}
        if broker is not None:
            how = {**how, "broker_url": broker.url}
        return Node(self.stage.start_worker(*options, **how), database, broker)

    def load(self, clients: int = 2) -> None:
        """Have clients call ledgers from now on, and wait until they hear answers."""
        self.stage.clients += [self.stage.start_client() for _ in range(clients)]
        self.stage.await_answers(20)

    def stop(self, node: Node, how: signal.Signals = signal.SIGTERM) -> float:
        """Ask a worker to end; how long it took."""
        began_s = time.monotonic()
        node.worker.process.send_signal(how)
        node.worker.exit_code(60)
        self._forget(node)
        return time.monotonic() - began_s

    def kill(self, node: Node, part: Part = "all") -> None:
        """SIGKILL, at once for all of it."""
        if part == "all":
            node.worker.kill_tree()
        else:
            node.send_signal(part, signal.SIGKILL)
        if part in ("all", "parent"):
            node.worker.process.wait(30)
            self._forget(node)

    def freeze(self, node: Node, part: Part = "all") -> list[int]:
        return node.send_signal(part, signal.SIGSTOP)

    def resume(self, node: Node, part: Part = "all") -> None:
        node.send_signal(part, signal.SIGCONT)

    def cut_database(self, node: Node) -> None:
        node.database.cut()

    def cut_broker(self, node: Node) -> None:
        node.broker.cut()

    def stall_lease_connection(self, node: Node) -> None:
        """Nothing comes through the lease connection any more, and nobody is told; new connections are as ever."""
        assert node.database.stall(f"entitycelery {self.name} lease".encode()) == 1

    @staticmethod
    def restart_postgres(server: EmbeddedPostgres, how: signal.Signals) -> None:
        """Restart the server of this cluster, one of the test's own: SIGINT is fast, SIGQUIT immediate."""
        server.halt(how)
        server.launch()

    def _forget(self, node: Node) -> None:
        self.nodes = [other for other in self.nodes if other is not node]

    # What is seen

    def placement(self) -> Placement:
        return self.play.entities.store.placement()

    def runner_of(self, node: Node) -> Runner | None:
        return next((runner for runner in self.placement().runners if runner.address == node.address), None)

    def holders(self) -> dict[int, list[str]]:
        """Shard -> the addresses of those that hold its lease, by the locks themselves where there are locks."""
        placement = self.placement()
        if not self.has_session_locks:
            holding = {lease.shard.number: placement.runner(lease.holder or "") for lease in placement.leases}
            return {shard: [runner.address] for shard, runner in holding.items() if runner is not None}
        address = {runner.worker: runner.address for runner in placement.runners}
        locks = holders_by_locks(self.url, self.name)
        return {shard: [address.get(worker, worker) for worker in workers] for shard, workers in locks.items()}

    def owners_of(self, shard: int) -> list[str]:
        return self.holders().get(shard, [])

    def shards_of(self, node: Node) -> set[int]:
        return {shard for shard, holders in self.holders().items() if node.address in holders}

    def wait_until_stable(self, *nodes: Node, within_s: float = 30.0) -> None:
        """Wait until these workers, or all that run, and nobody else, share the shards as the assignment says."""
        expected = {node.address for node in nodes or self.nodes}

        def is_stable() -> bool:
            placement = self.placement()
            should = assigned(placement.runners, self.shards)
            address = {runner.instance: runner.address for runner in placement.runners}
            assert set(address.values()) == expected, f"{sorted(address.values())} are there, not {sorted(expected)}"
            assert self.holders() == {shard.number: [address[name]] for shard, name in should.items()}
            return True

        eventually(is_stable, timeout_s=within_s, every_s=0.05)

    # Entities of one shard each

    def probe(self, shard: int) -> Any:
        """A ledger of this shard, of which the clients know nothing."""
        number = next(n for n in range(100_000) if self._shard_of(f"probe{n}") == shard)
        return self.play.ledger(f"probe{number}")

    def _shard_of(self, entity_id: str) -> int:
        return shard_of("default", entity_id, len(self.shards)).number

    def ask_each(self, shards: Sequence[int] | None = None, *, timeout_s: float = 30.0) -> float:
        """Have an entity of each shard handle a message; how long the last took from now, by its commit."""
        numbers = range(len(self.shards)) if shards is None else shards
        began_s = time.time()
        sent = [self.probe(number).append.send("probed") for number in numbers]
        for message in sent:
            message.result(timeout_s=timeout_s)
        return max(self.commits_s([message.id for message in sent])) - began_s

    def commits_s(self, ids: Sequence[str]) -> list[float]:
        """When the replies of these messages were stored, by the database's clock, which is the machine's."""
        store = self.play.entities.store
        wanted = set(ids)
        finished_s = store.dialect.to_epoch("finished_at")
        rows = query(store, f"SELECT id, {finished_s} FROM {{reply}}")  # noqa: S608 - an expression of our own
        return [float(at) for message_id, at in rows if message_id in wanted]

    def drains(self) -> list[Drain]:
        return drains_in(self.stage.folder / DRAINS)

    def drains_of(self, node: Node, *, since_s: float) -> int:
        """How many drains a worker has begun since then, by the wall clock."""
        return sum(1 for drain in self.drains() if drain.node == node.name and drain.at_s > since_s)

    # The end

    def verdict(self, **how: Any) -> list[Operation]:
        """Stop the clients, and hold everything that was seen against what must hold."""
        history = self.stage.verdict(self.play.entities, **how)
        self.assert_invariants()
        return history

    def assert_invariants(self) -> None:
        if self._sampler is not None:
            assert self._sampler.found == []
            eventually(lambda: self._sampler is None or self._sampler.looks > 0)
        every_node = [Node(worker, None, None) for worker in self.stage.started]
        late = late_drains(lease_lines(every_node), self.drains())
        assert late == [], "\n".join(late)

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
        for node in self.nodes:
            node.close()
        self.play.close()


MakeCluster = Callable[..., Cluster]
