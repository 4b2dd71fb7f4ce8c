"""A Redis transport that loses wake-ups: all that senders and drains ring, and every other one of the sweep's."""

from __future__ import annotations

import random
import sys
from typing import Any

from kombu.transport import redis

SWEPT_LOSS = 0.5


def _loss() -> float:
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return SWEPT_LOSS if main is not None and main.name == "entitycelery.worker.runner" else 1.0


class Channel(redis.Channel):
    """Loses what is put into a shard's queue."""

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if not queue.startswith("entity.") or random.random() >= _loss():
            super()._put(queue, message, **kwargs)


class Transport(redis.Transport):
    """For `broker_transport = "tests.chaos.lossy:Transport"`."""

    Channel = Channel
