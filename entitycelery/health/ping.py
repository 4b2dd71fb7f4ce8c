"""`ping`: who does not answer Celery's remote control is dead, unless we are not answered ourselves."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError
from kombu.pidbox import Mailbox

from entitycelery.clock import Deadline
from entitycelery.health.aside import Aside
from entitycelery.health.verdict import Health, Place, everybody
from entitycelery.placement import Runner

log = logging.getLogger("entitycelery.health")

ANSWER_WITHIN_S = 1.0

CONTROL_SETTINGS = ("control_exchange", "accept_content", "task_serializer")
"""What the app must have of the worker's configuration, beside its broker, to speak with workers."""


class Ping:
    """Asks the runners' workers over the broker, on a connection of its own.

    Our own worker is asked too. Where it does not answer, remote control is off, or the broker has none, or is away:
    then nobody is condemned.
    """

    def __init__(self, app: Celery, own_address: str, *, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self._app = app
        self._own_address = own_address
        self._answer_within_s = answer_within_s

    def healthy(self, runners: Sequence[Runner]) -> set[str]:
        addresses = sorted({self._own_address, *(runner.address for runner in runners)})
        errors: tuple[type[BaseException], ...] = (KombuError, OSError)
        try:
            with self._connection() as connection:
                errors += connection.connection_errors + connection.channel_errors
                connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1), interval_start=0)
                answered = self._answers(connection, addresses)
        except errors as exc:
            log.warning("no runner was pinged, all count as alive: %r", exc)
            return everybody(runners)
        if self._own_address not in answered:
            log.warning(
                "our own worker did not answer a ping, all runners count as alive", extra={"worker": self._own_address}
            )
            return everybody(runners)
        return {runner.instance for runner in runners if runner.address in answered}

    def _connection(self) -> Any:
        app = self._app
        connection = app.connection_for_write(connect_timeout=self._answer_within_s)
        if connection.transport.driver_type != "redis":
            return connection
        # Redis answers everything: without these a frozen one would be waited for as long as it is.
        limits = {"socket_timeout": self._answer_within_s, "socket_connect_timeout": self._answer_within_s}
        options = {**limits, **(connection.transport_options or {})}
        return app.connection_for_write(transport_options=options)

    def _answers(self, connection: Any, addresses: list[str]) -> set[str]:
        deadline = Deadline(self._answer_within_s)
        answered: set[str] = set()

        def answer(reply: dict[str, Any]) -> None:
            if deadline.passed:
                # kombu waits so long for each answer, not for all. Where they trickle in, the broker is slow.
                raise TimeoutError("the answers are late")
            answered.update(reply)

        conf = self._app.conf
        # Not the app's own mailbox: that one publishes on a connection of the app's pool.
        mailbox = Mailbox(
            conf.control_exchange, type="fanout", accept=conf.accept_content, serializer=conf.task_serializer
        )
        bound: Any = mailbox(connection)
        bound.call(addresses, "ping", timeout=self._answer_within_s, callback=answer)
        return answered


def ping(place: Place) -> Health:
    """Pings over the worker's own broker."""
    return Aside(Ping(place.app, place.address))
