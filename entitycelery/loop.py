"""Loops: functions that run on exactly one runner. What is registered, and what a running one gets.

Checks what can be checked at registration. Runs nothing.
"""

from __future__ import annotations

import inspect
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

from entitycelery.address import is_group_name, quoted, valid_entity_id
from entitycelery.exceptions import ConfigurationError
from entitycelery.shard_group import DEFAULT_GROUP
from entitycelery.singleton import LoopSpec

CONTEXT = "context"


class LoopContext:
    """What a loop `run(stop, context)` gets besides the event.

    Attributes:
        name: The name of the singleton.
        fence: A number that is larger with every start of this singleton, wherever. Pass it to systems that can refuse
            an older one.
    """

    def __init__(self, name: str, fence: int, beats: Heartbeats) -> None:
        self.name = name
        self.fence = fence
        self._beats = beats

    def heartbeat(self) -> None:
        """Say that the loop goes round. From the first call on its heartbeat is written only if this is called.

        Costs nothing: what is written, every `heartbeat_interval_s`, is written by another thread.
        """
        self._beats.say()

    def __repr__(self) -> str:
        return f"<LoopContext {self.name} fence {self.fence}>"


class Heartbeats:
    """Whether a heartbeat is due to be written: always, until the loop says that it beats itself."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_said_by_loop = False
        self._has_said = False

    def say(self) -> None:
        with self._mutex:
            self._is_said_by_loop = self._has_said = True

    def take(self) -> bool:
        """Whether to write one now."""
        with self._mutex:
            has_said, self._has_said = self._has_said, False
            return has_said or not self._is_said_by_loop


Run = Callable[..., Any]


class Loop:
    """A registered loop. `owner` is the EntityCelery with which it is registered."""

    def __init__(
        self,
        function: Run,
        owner: Any,
        *,
        name: str | None = None,
        shard_group: str = DEFAULT_GROUP,
        on_become_leader: Run | None = None,
        on_lose_leadership: Run | None = None,
        restart_backoff_s: float = 1.0,
        restart_backoff_max_s: float = 60.0,
        heartbeat_interval_s: float = 5.0,
    ) -> None:
        self.function = _checked_function(function)
        self.name = valid_entity_id(function.__name__ if name is None else name)
        self._owner = weakref.ref(owner)
        self._gets_context = _gets_context(
            function, f"{self.name}: a loop is a function run(stop) or run(stop, context)"
        )
        self._hooks = {
            hook: _checked_hook(given, f"{self.name}: {hook}")
            for hook, given in (("on_become_leader", on_become_leader), ("on_lose_leadership", on_lose_leadership))
        }
        self.spec = LoopSpec(
            name=self.name,
            shard_group=_checked_group(self.name, shard_group),
            module=function.__module__,
            qualname=function.__qualname__,
            restart_backoff_s=_positive(self.name, "restart_backoff_s", restart_backoff_s),
            restart_backoff_max_s=_positive(self.name, "restart_backoff_max_s", restart_backoff_max_s),
            heartbeat_interval_s=_positive(self.name, "heartbeat_interval_s", heartbeat_interval_s),
        )
        _registered[self.key] = self

    @property
    def key(self) -> tuple[str, str, str]:
        """By which another process finds it, once it has imported the module."""
        return self.spec.module, self.spec.qualname, self.name

    @property
    def owner(self) -> Any:
        """The EntityCelery.

        Raises:
            ConfigurationError: It is gone.
        """
        owner = self._owner()
        if owner is None:
            raise ConfigurationError(f"the EntityCelery of the loop {self.name} is gone")
        return owner

    def run(self, stop: threading.Event, context: LoopContext) -> None:
        """Run it, in this thread, until it returns."""
        self.function(stop, context) if self._gets_context else self.function(stop)

    def call_hook(self, hook: str, context: LoopContext) -> None:
        """Call `on_become_leader` or `on_lose_leadership`, where there is one."""
        given = self._hooks[hook]
        if given is not None:
            function, gets_context = given
            function(context) if gets_context else function()

    def __repr__(self) -> str:
        return f"<Loop {self.name}: {self.spec.module}.{self.spec.qualname}>"


_registered: weakref.WeakValueDictionary[tuple[str, str, str], Loop] = weakref.WeakValueDictionary()


def registered_loop(spec: LoopSpec) -> Loop:
    """The loop that a worker told of, in a process that has imported its module.

    Raises:
        ConfigurationError: The module registers no such loop here.
    """
    found = _registered.get((spec.module, spec.qualname, spec.name))
    if found is None:
        raise ConfigurationError(
            f"the module {spec.module} registers no loop {spec.name!r} of {spec.qualname} when it is imported"
        )
    return found


def _checked_function(function: Any) -> Run:
    what = getattr(function, "__qualname__", repr(function))
    if not inspect.isfunction(function):
        raise ConfigurationError(f"a loop is a plain function of a module, {what} is none")
    if "<" in function.__qualname__:
        raise ConfigurationError(
            f"the loop {what} cannot be imported by another process: define it at the top of a module"
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"the loop {what} is a plain function: inside it, call asyncio.run() if you need to")
    if inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"the loop {what} is a plain function, and no generator")
    return function


def _gets_context(function: Run, sentence: str) -> bool:
    signature = inspect.signature(function)
    positional = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    second = positional[1] if len(positional) > 1 else None
    wanted = second is not None and (second.name == CONTEXT or second.default is second.empty)
    try:
        signature.bind(*(["stop", CONTEXT] if wanted else ["stop"]))
    except TypeError as exc:
        raise ConfigurationError(f"{sentence}, got {function.__qualname__}{signature}") from exc
    return wanted


def _checked_hook(hook: Any, what: str) -> tuple[Run, bool] | None:
    """A hook, and whether it takes the context."""
    if hook is None:
        return None
    if not callable(hook) or inspect.iscoroutinefunction(hook):
        raise ConfigurationError(f"{what} is a plain function, got {hook!r}")
    for arguments in ((), (CONTEXT,)):
        try:
            inspect.signature(hook).bind(*arguments)
        except TypeError:
            continue
        except ValueError:
            # Some builtins do not say what they take.
            return hook, False
        return hook, bool(arguments)
    raise ConfigurationError(f"{what} takes nothing, or the context, got {hook!r}")


def _checked_group(name: str, group: Any) -> str:
    if not isinstance(group, str) or not is_group_name(group):
        raise ConfigurationError(f"{quoted(name)}: shard_group is the name of a shard group, got {group!r}")
    return group


def _positive(name: str, option: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{quoted(name)}: {option} must be greater than 0 and finite, got {value!r}")
    return float(value)
