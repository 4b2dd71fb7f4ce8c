"""Wake-ups that are noted instead of sent, so that a test decides when one arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery

from entitycelery import EntityCelery
from entitycelery.address import ShardId
from entitycelery.transports.bell import Bell
from tests.storage.interleave import Party

SHARD = ShardId("default", 0)


class NotedRings:
    """Entities of one shard on a real store, without a worker: drains run where the test wants them."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.rings: list[ShardId] = []
        self.on_ring: Callable[[], None] = lambda: None
        self.entities = EntityCelery(Celery("town", broker="memory://", set_as_current=False))
        self.entities.override(database_url=url, shards_per_group=1, cluster="town", **settings)
        self.store = self.entities.store
        self.store.schema.upgrade()
        self.bell = Bell(self, self.store.attended)
        # However fast this machine sends: who rings has rung when the send returns.
        self.bell._later.put = self.bell._carry  # type: ignore[method-assign]
        self.entities.host.bell = self.entities.client._bell = self.bell

    def ring(self, shards: Sequence[ShardId]) -> None:
        self.rings += shards
        self.on_ring()

    def drain(self) -> None:
        while self.entities.host.drain(SHARD).more:
            pass

    def answer_rings(self) -> None:
        """Have a drain run for each wake-up that has not been answered, as other pool slots would."""
        while self.rings:
            self.rings.clear()
            aside(self.drain)


def aside(act: Callable[[], Any]) -> Any:
    """Do it in another thread, outside of any turn, and wait for it."""
    return Party(act).join()
