"""The host: what the drains of one process share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from entitycelery.address import ShardId
from entitycelery.entity_type import EntityType
from entitycelery.envelope import Envelope
from entitycelery.exceptions import UnknownEntityType
from entitycelery.registry import Registry
from entitycelery.runtime.drain import Drain, Drained
from entitycelery.runtime.event_loop import EventLoopThread
from entitycelery.runtime.watch import Watch
from entitycelery.settings import Settings
from entitycelery.signal_token import SignalTokens
from entitycelery.storage.port import Store
from entitycelery.transports.bell import Bell


class Host:
    """What the drains of one process share."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: Store,
        settings: Settings,
        envelope: Envelope,
        bell: Bell,
        async_result: Callable[[str, Callable[[str], Any]], Any],
    ) -> None:
        self.registry = registry
        self.store = store
        self.settings = settings
        self.envelope = envelope
        self.bell = bell
        self.async_result = async_result
        self.monotonic_s: Callable[[], float] = time.monotonic
        """By what a drain reckons how long ago it asked for the database's time; tests stop it."""
        self.tokens = SignalTokens(settings.cluster, store.signal_secret)
        self.loop = EventLoopThread(settings.async_concurrency)
        self.watch = Watch()

    def drain(self, *shards: ShardId, may_end_process: bool = False) -> Drained:
        """Work off the due messages of shards of one group.

        Args:
            may_end_process: Whether a turn that cannot be interrupted may be stopped by ending this process.
        """
        with self.store.drain_session(*shards, names=self.registry.aliases()) as session:
            drain = Drain(self, shards, session, may_end_process)
            self.watch.add(drain)
            try:
                return drain.run()
            finally:
                self.watch.remove(drain)

    def kind(self, name: str) -> EntityType | None:
        try:
            return self.registry.get(name)
        except UnknownEntityType:
            return None
