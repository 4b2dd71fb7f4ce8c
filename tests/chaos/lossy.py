"""A Redis transport that loses all wake-ups."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """Loses what is put into a shard's queue."""

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if not queue.startswith("entity."):
            super()._put(queue, message, **kwargs)


class Transport(redis.Transport):
    """For `broker_transport = "tests.chaos.lossy:Transport"`."""

    Channel = Channel
