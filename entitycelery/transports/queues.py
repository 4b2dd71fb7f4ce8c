"""The queues of shards on the broker, as objects that can be left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError

from entitycelery.exceptions import TransportFailed

_ANSWER_WITHIN_S = 5


class ShardQueues:
    """Removes queues through the app's own broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def remove(self, gone: Sequence[str], stale: Sequence[str]) -> None:
        """Delete the queues that are `gone`, and drop the wake-ups that wait in the `stale` ones.

        Raises:
            TransportFailed: The broker did not answer; some of it may be done.
        """
        errors: tuple[type[BaseException], ...] = (KombuError, OSError)
        try:
            with self._app.connection_for_write() as connection:
                errors += connection.connection_errors + connection.channel_errors
                connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0, timeout=_ANSWER_WITHIN_S)
                channel: Any = connection.default_channel
                # On RabbitMQ wake-ups expire by themselves, and to ask for a queue that is not there is an error.
                keeps_wakeups = connection.transport.driver_type != "amqp"
                for name in (*gone, *stale) if keeps_wakeups else ():
                    channel.queue_purge(name)
                for name in gone:
                    channel.queue_delete(name)
        except errors as exc:
            raise TransportFailed(f"the broker did not remove queues: {exc!r}") from exc
