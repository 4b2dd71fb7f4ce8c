"""A Celery result backend over the reply table, by which `.delay()` of an entity gives a full AsyncResult.

It reads replies of entities. As an app's `result_backend` it does not store other tasks' results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from celery import Celery, states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.result import AsyncResult

from entitycelery.app import EntityCelery, entities_of
from entitycelery.clock import utc_from_epoch
from entitycelery.codec import from_json
from entitycelery.exceptions import ConfigurationError, ReplyTimeout, UnknownMessage
from entitycelery.failures import result_of
from entitycelery.message import Reply, Status

_FOR_EVER_S = 10 * 365 * 86_400.0


class EntityBackend(BaseBackend):
    """Reads the outcome of entities' messages. A message that was never stored is PENDING, as everywhere in Celery."""

    def __init__(
        self,
        app: Celery,
        url: str | None = None,
        decode: Callable[[str], Any] = from_json,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, url=url, **kwargs)
        self._decode = decode

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """Celery's description of a message's outcome."""
        try:
            reply = self._entities.reply(task_id)
        except UnknownMessage:
            reply = None
        return _pending(task_id) if reply is None else self._meta(reply)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,  # Celery's own signature: seconds
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Wait for the reply.

        Raises:
            celery.exceptions.TimeoutError: No reply within `timeout` seconds.
        """
        try:
            return self._meta(self._entities.client.reply(task_id, _FOR_EVER_S if timeout is None else timeout))
        except ReplyTimeout as exc:
            raise CeleryTimeout("The operation timed out.") from exc

    def forget(self, result_id: str) -> None:
        """Nothing: a reply keeps its key until entity_reply_retention_s is over."""

    def _ensure_not_eager(self) -> None:
        """Nothing: task_always_eager is about tasks, a message is always stored."""

    def _store_result(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigurationError(
            "result_backend='entity' holds the replies of entities; name another backend for the results of tasks"
        )

    def _meta(self, reply: Reply) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "task_id": reply.id,
            "status": states.SUCCESS,
            "result": None,
            "traceback": None,
            "children": [],
            "date_done": utc_from_epoch(reply.finished_at_epoch_s).isoformat(),
        }
        try:
            return {**meta, "result": self._decode(result_of(reply))}
        except Exception as exc:  # noqa: BLE001 - whatever the handler raised is the result
            revoked = reply.status is Status.CANCELLED
            trace = reply.failure.traceback if reply.failure else None
            return {
                **meta,
                "status": states.REVOKED if revoked else states.FAILURE,
                "result": exc,
                "traceback": trace,
            }

    @property
    def _entities(self) -> EntityCelery:
        app: Celery = self.app  # type: ignore[attr-defined]
        return entities_of(app)


def entity_result(entities: EntityCelery, message_id: str, decode: Callable[[str], Any]) -> AsyncResult[Any]:
    """Celery's AsyncResult of a message, whatever result backend the app has."""
    return AsyncResult(message_id, backend=EntityBackend(entities.app, decode=decode), app=entities.app)


def _pending(task_id: str) -> dict[str, Any]:
    return {"task_id": task_id, "status": states.PENDING, "result": None, "traceback": None, "children": []}
