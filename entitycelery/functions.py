"""Functions as entities: a function that a schedule calls gets a mailbox, so its calls are turns like any other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any

from entitycelery.entity import Entity
from entitycelery.exceptions import ConfigurationError
from entitycelery.handlers import Handler
from entitycelery.operation import HandlerOptions

OPERATION = "run"
THE_ID = "function"
_PARAMETERS = {(), ("scheduled_at",)}


def entity_of(function: Callable[..., Any], name: str, options: HandlerOptions) -> type[Entity]:
    """An entity class whose only handler, `run(scheduled_at)`, calls the function.

    Raises:
        ConfigurationError: The function takes something else than nothing, or `scheduled_at`.
    """
    required = tuple(_required(function, name))
    if required not in _PARAMETERS:
        raise ConfigurationError(
            f"the scheduled function {name} takes no argument or scheduled_at, the instant of the tick; "
            f"it takes {', '.join(required)}"
        )
    handler: Handler[Any, Any, Any, Any] = Handler(_method(function, tells_when=bool(required)), options)
    members = {
        OPERATION: handler,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__doc__": function.__doc__,
    }
    return type(name.rpartition(".")[2], (Entity,), members)


def _required(function: Callable[..., Any], name: str) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters):
        raise ConfigurationError(f"the scheduled function {name} takes an argument by position only: drop the '/'")
    return [
        parameter.name
        for parameter in parameters
        if parameter.name == "scheduled_at"
        or (parameter.default is parameter.empty and parameter.kind not in _VARIADIC)
    ]


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _method(function: Callable[..., Any], *, tells_when: bool) -> Callable[..., Any]:
    def given(scheduled_at: datetime) -> dict[str, datetime]:
        return {"scheduled_at": scheduled_at} if tells_when else {}

    def run(self: Any, scheduled_at: datetime) -> None:
        function(**given(scheduled_at))

    async def arun(self: Any, scheduled_at: datetime) -> None:
        await function(**given(scheduled_at))

    method = arun if inspect.iscoroutinefunction(function) else run
    method.__name__ = OPERATION
    method.__doc__ = function.__doc__
    return method
