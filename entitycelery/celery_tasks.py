"""The entity that sends Celery tasks, for schedules and for workflows: the wish is stored like any other message, then
handled by sending.

So a broker that is away costs time and no task. A task is sent at least once, and always as the same task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from entitycelery.entity import Entity
from entitycelery.handlers import handler

TASKS_TYPE = "entity.tasks"
CALL = "call"
"""The operation that sends a task whose result is wanted."""
ASKER_HEADER = "entity_asker"
"""The header of a task that says which entity its result is for."""

_LONGEST_PAUSE_S = 30.0

SendTask = Callable[..., Any]


def tasks_entity(send_task: SendTask, passing: tuple[type[BaseException], ...]) -> type[Entity]:
    """The entity class of one app, whose tasks are sent by `send_task`; errors that are `passing` are tried again."""

    class CeleryTasks(Entity):
        @handler(autoretry_for=passing, max_retries=None, retry_backoff_max=_LONGEST_PAUSE_S)
        def send(self, task: str, args: list[Any], kwargs: dict[str, Any], options: dict[str, Any]) -> str:
            send_task(task, args, kwargs, **_without_id(options), task_id=self.turn.message_id)
            return self.turn.message_id

        @handler(autoretry_for=passing, max_retries=None, retry_backoff_max=_LONGEST_PAUSE_S)
        def call(
            self,
            name: str,
            args: list[Any],
            kwargs: dict[str, Any],
            options: dict[str, Any],
            task_id: str,
            asker: str,
        ) -> None:
            headers = {**(options.get("headers") or {}), ASKER_HEADER: asker}
            send_task(name, args, kwargs, **{**_without_id(options), "headers": headers}, task_id=task_id)

    return CeleryTasks


def _without_id(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "task_id"}
