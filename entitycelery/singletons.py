"""What exists once in the cluster: `@entities.singleton`, and what is asked and wanted of singletons."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, overload

from entitycelery.address import Address
from entitycelery.client.hosting import singleton_status, ticking_status
from entitycelery.clock import seconds
from entitycelery.declaring import SINGLETON_ID, ticking_schedule
from entitycelery.entity import Entity
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError, RunnerNotRegistered, UnknownSingleton
from entitycelery.loop import Loop
from entitycelery.parts import Parts
from entitycelery.placement import Placement, Runner
from entitycelery.singleton import Singleton

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=Entity)


class Singletons(ABC):
    """The part of `EntityCelery` that is about singletons."""

    def __init__(self) -> None:
        super().__init__()
        self._loops: dict[str, Loop] = {}
        self._ticking: dict[str, tuple[EntityType, float]] = {}

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    @abstractmethod
    def _declare_ticking(self, cls: type, every_s: float | timedelta, name: str | None) -> EntityType:
        """Register an entity class whose one entity is to tick."""

    # Registration

    @overload
    def singleton(self, target: type[T], /) -> type[T]: ...
    @overload
    def singleton(self, target: F, /) -> F: ...
    @overload
    def singleton(self, /, *, every_s: float | timedelta, name: str | None = None) -> Callable[[type[T]], type[T]]: ...
    @overload
    def singleton(
        self,
        /,
        *,
        name: str | None = None,
        shard_group: str = "default",
        on_become_leader: Callable[..., Any] | None = None,
        on_lose_leadership: Callable[..., Any] | None = None,
        restart_backoff_s: float = 1.0,
        restart_backoff_max_s: float = 60.0,
        heartbeat_interval_s: float = 5.0,
    ) -> Callable[[F], F]: ...
    def singleton(self, target: Any = None, /, **options: Any) -> Any:
        """Register a function `run(stop)`, or `run(stop, context)`: a loop that runs on exactly one runner, always. Or,
        with `every_s`, an entity class whose handler `tick` is called every so many seconds, exactly once each: the
        entity `Type/singleton`, with its state, wherever it lives.

        A loop runs in a process of its own, with the app loaded. `stop` is a `threading.Event`, set when it is to end.
        A loop that raises is started again, and so is one that returns though it was not to stop.

        Args:
            name: Its name in the cluster, if not the function's.
            shard_group: The group whose workers may run it.
            on_become_leader: Called in its process before each run; with the context, if it takes one.
            on_lose_leadership: Called in its process after a run that was told to stop.
            restart_backoff_s: Pause before the first restart; doubled with each one that follows soon.
            restart_backoff_max_s: Longest pause. What ran for longer begins with the shortest again.
            heartbeat_interval_s: How often its process writes that it lives.

        Raises:
            ConfigurationError: The function cannot be a loop, or its name belongs to another; the sentence says which.
        """

        def register(given: Any) -> Any:
            if inspect.isclass(given):
                return self._register_ticking(given, options)
            if "every_s" in options:
                raise ConfigurationError(
                    "every_s is for an Entity class with a handler `tick`, a loop has its own pace"
                )
            self._register_loop(Loop(given, self, **options))
            return given

        return register if target is None else register(target)

    def _register_ticking(self, cls: Any, options: dict[str, Any]) -> type:
        """An entity that exists once, and whose `tick` is called at intervals."""
        unknown = sorted(set(options) - {"every_s", "name"})
        if "every_s" not in options or unknown:
            raise ConfigurationError(
                f"singleton of the class {cls.__qualname__} takes every_s= and perhaps name=, "
                f"got {', '.join(sorted(options)) or 'nothing'}; a loop is a function run(stop)"
            )
        kind = self._declare_ticking(cls, options["every_s"], options.get("name"))
        self._ticking[kind.name] = kind, seconds(options["every_s"])
        return kind.cls

    def _register_loop(self, loop: Loop) -> None:
        known = self._loops.get(loop.name)
        # A module that is imported again (a reload, `__main__` under its own name) defines its functions anew.
        if known is not None and known.spec.qualname != loop.spec.qualname:
            raise ConfigurationError(
                f"two singletons are named {loop.name!r}: {known.spec.qualname} in {known.spec.module} "
                f"and {loop.spec.qualname} in {loop.spec.module}"
            )
        self._loops[loop.name] = loop

    @property
    def loops(self) -> list[Loop]:
        """The registered loops, by name."""
        return [self._loops[name] for name in sorted(self._loops)]

    # What there is

    def singletons(self) -> list[Singleton]:
        """Every loop that the cluster has ever run, and every entity that ticks in this app, by name: who runs it, and
        how it is."""
        parts = self._ready()
        store, placement = parts.store, parts.store.placement()
        loops = [singleton_status(stored, placement) for stored in store.roster.all()]
        now_epoch_s = store.timetable.now_epoch_s()
        ticking = [
            ticking_status(
                kind.name,
                *(store.timetable.one(ticking_schedule(kind)), every_s, now_epoch_s),
                *(placement, parts.envelope.shard(Address(kind.name, SINGLETON_ID))),
            )
            for kind, every_s in self._ticking.values()
        ]
        return sorted([*loops, *ticking], key=lambda one: one.name)

    def restart_singleton(self, name: str) -> None:
        """Have a loop stopped and started again where it is; without a pause, if it waits for one.

        Raises:
            UnknownSingleton: The cluster has never run one of this name.
        """
        self._refuse_ticking(name, "restarted: each of its ticks is a message of its own")
        if not self._ready().store.roster.restart(name):
            raise _unknown(name)

    def move_singleton(self, name: str, to: str | Runner | None = None) -> Runner | None:
        """Have a loop run at another runner: at `to`, a worker's node name, or wherever it is not now.

        It stays there for as long as that runner lives, or, without `to`, does not come back for as long as the present
        one lives. A runner whose code does not have the loop does not get it. Returns where it is to be, if that is
        known.

        Raises:
            UnknownSingleton: The cluster has never run one of this name.
            RunnerNotRegistered: No living runner is called so, or it does not host the singleton's group.
        """
        self._refuse_ticking(name, "moved: it lives where its shard is, as every entity")
        found = next((one for one in self.singletons() if one.name == name), None)
        if found is None:
            raise _unknown(name)
        store = self._ready().store
        target = None if to is None else _target(store.placement(), found, to)
        avoided = found.holder.worker if target is None and found.holder is not None else None
        store.roster.move(name, wanted=None if target is None else target.worker, avoided=avoided)
        return target

    def _refuse_ticking(self, name: str, why: str) -> None:
        if name in self._ticking:
            raise ConfigurationError(f"{name} is an entity that ticks, so it cannot be {why}")


def _target(placement: Placement, singleton: Singleton, to: str | Runner) -> Runner:
    name = to.instance if isinstance(to, Runner) else to
    named = [runner for runner in placement.runners if name in (runner.address, runner.instance)]
    living = [runner for runner in named if runner.locked is not False and not runner.leaving]
    if not living:
        raise RunnerNotRegistered(f"no living runner is called {name!r}")
    # Of one address are two for a moment: a worker that was started again, and the one before.
    runner = max(living, key=lambda one: one.started_at)
    if singleton.shard_group not in runner.groups:
        raise RunnerNotRegistered(
            f"the runner {runner.address} does not host the group {singleton.shard_group!r} of {singleton.name}"
        )
    return runner


def _unknown(name: str) -> UnknownSingleton:
    return UnknownSingleton(f"the cluster has never run a singleton {name!r}")
