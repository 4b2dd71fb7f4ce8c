"""Which Celery task a body means, and how it is to be sent."""

from __future__ import annotations

from typing import Any

import msgspec

from entitycelery.exceptions import ConfigurationError


class TaskCall(msgspec.Struct, frozen=True):
    """A Celery task that is to be sent: its name, its arguments, and the options of `apply_async`."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


def task_call(celery_task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskCall:
    """The call of a task, of a signature of one, or of one that is known by name.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(celery_task, str):
        return TaskCall(celery_task, list(args), kwargs, {})
    if isinstance(celery_task, dict) and isinstance(celery_task.get("task"), str):
        return _signed(celery_task, args, kwargs)
    name = getattr(celery_task, "name", None)
    if not isinstance(name, str) or not hasattr(celery_task, "apply_async"):
        raise ConfigurationError(f"flow.task(...) takes a Celery task, its name or a signature, got {celery_task!r}")
    return TaskCall(name, list(args), kwargs, {})


def _signed(signature: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskCall:
    if signature.get("subtask_type"):
        raise ConfigurationError(
            f"flow.task(...) takes the signature of one task, got a {signature['subtask_type']}: use flow.gather(...) "
            "for several at once, and one call after the other for a chain"
        )
    given, options = list(signature.get("args") or ()), dict(signature.get("options") or {})
    if signature.get("immutable"):
        args, kwargs = (), {}
    # As Celery does: arguments of the call come before those of the signature.
    return TaskCall(signature["task"], [*args, *given], {**(signature.get("kwargs") or {}), **kwargs}, options)
