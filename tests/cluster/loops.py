"""Clusters whose workers have a loop, and what can be seen of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from entitycelery import Singleton
from entitycelery.address import shard_of
from entitycelery.singleton import Timing
from tests.cluster import diary
from tests.cluster.clusters import Cluster, MakeCluster
from tests.cluster.diary import Entry
from tests.cluster.nodes import Node
from tests.waiting import eventually

NAME = "watched"
MODULE = "tests.cluster.loop_app"
STORES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "advisory": ("redis", "postgresql", {}),
    "rows": ("redis", "postgresql", {"entity_lock_mode": "rows"}),
    "sqlite": ("folder", "sqlite", {}),
}
"""Broker, store and settings for each way of holding."""
TAKEOVER_S = 3.0
# The promise is printed beside what it took; a machine that does much else at that moment breaks none.
BUSY_S = 3.0
"""On a machine on which a process has imported the app before its predecessor must have ended."""


class Loops:
    """The loop of a cluster."""

    def __init__(self, new_cluster: MakeCluster, on: str = "advisory", **conf: Any) -> None:
        broker, store, own = STORES[on]
        self.cluster: Cluster = new_cluster(broker, store=store, module=MODULE, **{**own, **conf})
        self._folder = self.cluster.stage.folder
        self.entities = self.cluster.play.entities

    def start(self, count: int = 1, **how: Any) -> list[Node]:
        """Start workers, and wait until the loop runs where it stays: at the one that holds the shard of its name."""
        nodes = self.cluster.start(count, **how)
        self.cluster.wait_until_stable()
        # A worker that became ready later than another may have been given its shard, and the loop follows.
        eventually(lambda: self.has_shard(self.holder()), timeout_s=60)
        return nodes

    def entries(self) -> list[Entry]:
        return diary.read(self._folder)

    def wait_for_more(self, lines: int = 5, within_s: float = 30.0) -> Entry:
        """Wait until it has written so many more lines; the last of them."""
        goal = len(self.entries()) + lines
        return eventually(lambda: (found := self.entries()) and len(found) >= goal and found[-1], timeout_s=within_s)

    def holder(self) -> Node:
        """The worker at which it runs now."""
        latest = self.wait_for_more()
        return next(node for node in self.cluster.nodes if node.name == latest.node)

    def others(self) -> list[Node]:
        holder = self.holder()
        return [node for node in self.cluster.nodes if node is not holder]

    def wait_for_successor(self, fence: int, began_s: float) -> tuple[Entry, float]:
        """Wait for the first line of a later loop; how long after `began_s`, by the wall clock, it was written."""
        first = eventually(
            lambda: next((entry for entry in self.entries() if entry.fence > fence), None), timeout_s=30, every_s=0.05
        )
        assert first is not None
        return first, first.at_s - began_s

    def last_of(self, fence: int) -> Entry:
        """The last line of a loop."""
        return [entry for entry in self.entries() if entry.fence == fence][-1]

    def begun(self, after: int) -> list[Entry]:
        """The first lines of all loops later than this one."""
        return [entry for entry in self.entries() if entry.fence > after and entry.what == "begins"]

    def has_shard(self, node: Node) -> bool:
        """Whether a worker holds the shard of the loop's name."""
        return shard_of("default", NAME, len(self.cluster.shards)).number in self.cluster.shards_of(node)

    def tell(self, *what: str) -> None:
        """Have the loop be so, and nothing else."""
        for word in (diary.DEAF, diary.FAILS, diary.RETURNS):
            file = self._folder / word
            if word in what:
                file.touch()
            else:
                file.unlink(missing_ok=True)

    def stored(self) -> Singleton:
        [found] = [one for one in self.entities.singletons() if one.name == NAME]
        return found

    def takeover_s(self) -> float:
        """What a takeover may take here and now: what a busy machine needs to import the app is not ours."""
        began_s = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", f"import entitycelery.worker.loop, {MODULE}"],
            env={**os.environ, **self.cluster.stage.environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=self._folder,
            check=True,
        )
        imports_s = time.monotonic() - began_s
        return TAKEOVER_S + BUSY_S + max(0.0, 2 * imports_s - Timing().successor_waits_s)

    def play(self, for_s: float) -> None:
        time.sleep(for_s)

    def assert_never_two(self) -> None:
        found = diary.overlaps(self.entries())
        assert found == [], "\n".join(found[:10])
