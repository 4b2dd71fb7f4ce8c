"""Wake-ups over the app's own broker: small transient messages on the shards' Celery queues.

A wake-up names its shard in its headers and has no body, so no serializer setting of the app concerns it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from kombu import Exchange, Queue, pools
from kombu.exceptions import ChannelError, KombuError

from entitycelery.address import ShardId, queue_name
from entitycelery.exceptions import TransportFailed

DRAIN_TASK = "entitycelery.drain"
_UNUSED_QUEUE_LIVES_MS = 24 * 3600 * 1000
_MOST_WAITING = 16
_ANSWER_WITHIN_S = 1.0


class BrokerRinger:
    """Publishes wake-ups through the app's producer pool; on Redis through one that does not wait for ever."""

    def __init__(self, app: Celery, cluster: str, expires_s: float) -> None:
        self._app = app
        self._cluster = cluster
        self._expires_s = expires_s
        self._since_look: dict[ShardId, int] = {}
        self._pid = 0
        self._impatient: pools.ProducerPool | None = None

    def ring(self, shards: Sequence[ShardId]) -> None:
        """Send one wake-up to each shard; they expire.

        Raises:
            TransportFailed: The broker did not take them.
        """
        errors: tuple[type[BaseException], ...] = (KombuError, OSError)
        try:
            with self._producers().acquire(block=True, timeout=2.0) as producer:
                connection: Any = producer.connection
                errors += connection.connection_errors + connection.channel_errors
                if not connection.connected:
                    # Else a first publish would try to connect for ever. Each host once, and no sleep: a sender waits.
                    connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1), interval_start=0)
                limits_queues = connection.transport.driver_type == "amqp"
                for shard in shards:
                    if not limits_queues and self._has_enough(producer.channel, shard):
                        continue
                    producer.publish(
                        "",
                        exchange="",
                        routing_key=queue_name(self._cluster, shard),
                        headers={
                            "task": DRAIN_TASK,
                            "entity_group": shard.group,
                            "entity_shard": shard.number,
                        },
                        content_type="text/plain",
                        content_encoding="utf-8",
                        delivery_mode=1,
                        expiration=self._expires_s,
                        retry=False,
                    )
        except errors as exc:
            raise TransportFailed(f"the broker did not take a wake-up: {exc!r}") from exc

    def _producers(self) -> Any:
        if self._pid != os.getpid():
            self._pid, self._impatient = os.getpid(), self._impatient_producers()
        return self._impatient or self._app.producer_pool

    def _impatient_producers(self) -> pools.ProducerPool | None:
        """Our own on Redis, which answers every publish: with the app's a sender would hang as long as the server."""
        connection = self._app.connection_for_write()
        if connection.transport.driver_type != "redis":
            return None
        limits = {"socket_timeout": _ANSWER_WITHIN_S, "socket_connect_timeout": _ANSWER_WITHIN_S}
        options = {**limits, **(connection.transport_options or {})}
        limit = self._app.pool.limit
        connections = self._app.connection_for_write(transport_options=options).Pool(limit=limit)
        return pools.ProducerPool(connections, limit=limit)

    def _has_enough(self, channel: Any, shard: ShardId) -> bool:
        # Redis and the folder keep what nobody consumes for ever: senders at night must not fill them.
        self._since_look[shard] = rung = self._since_look.get(shard, 0) + 1
        if rung < _MOST_WAITING:
            return False
        try:
            waiting: int = channel.queue_declare(queue_name(self._cluster, shard), passive=True).message_count
        except ChannelError:
            waiting = 0
        if waiting < _MOST_WAITING:
            self._since_look[shard] = 0
        return waiting >= _MOST_WAITING


def rung_shard(headers: Mapping[str, Any] | None) -> ShardId | None:
    """The shard that a wake-up is for; None if it is a foreign message."""
    group, number = (headers or {}).get("entity_group"), (headers or {}).get("entity_shard")
    return ShardId(group, number) if isinstance(group, str) and type(number) is int else None


def shard_queue(cluster: str, shard: ShardId, expires_s: float) -> Queue:
    """The Celery queue of a shard: on RabbitMQ short, forgetful, and gone a day after its last consumer."""
    name = queue_name(cluster, shard)
    return Queue(
        name,
        exchange=Exchange(""),
        routing_key=name,
        durable=True,
        message_ttl=expires_s,
        max_length=_MOST_WAITING,
        expires=_UNUSED_QUEUE_LIVES_MS / 1000,
    )
