"""Schedules in code: `@entities.cron` and a `beat_schedule` of Celery's. Workers store them as they start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar, Unpack

import msgspec

from entitycelery.client.definitions import Definitions, ScheduleOptions
from entitycelery.clock import utc_from_epoch
from entitycelery.durable.definition import WorkflowDefinition
from entitycelery.entity import Entity
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError
from entitycelery.functions import OPERATION, THE_ID, entity_of
from entitycelery.handlers import Handler, TurnOptions, handler_options
from entitycelery.limits import valid_name
from entitycelery.parts import Parts
from entitycelery.ref import Ref
from entitycelery.scheduler.definition import EntityTarget, Target
from entitycelery.shard_group import DEFAULT_GROUP
from entitycelery.stored_schedule import Origin

F = TypeVar("F", bound=Callable[..., Any])

# Where the ticks of intervals that code declares count from, so that every process counts from there.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SINGLETON_ID = "singleton"
TICK = "tick"


def ticking_schedule(kind: EntityType) -> str:
    """The name of the schedule by which the one entity of a type ticks."""
    return f"{kind.name}/{SINGLETON_ID}.{TICK}"


class _Declared(msgspec.Struct, frozen=True):
    """A schedule in code; what it means is known when all code is loaded and the settings are read."""

    when: object
    target: Callable[[], Target]
    options: ScheduleOptions
    origin: Origin
    whose: str


class _OnHandler(NamedTuple):
    """A schedule that was put on a handler, whose entity type is not known yet."""

    entities: Declaring
    name: str | None
    entity_id: str
    when: object
    options: ScheduleOptions


class Declaring(ABC):
    """The part of `EntityCelery` that takes schedules from code."""

    def __init__(self) -> None:
        super().__init__()
        self._declared: dict[str, _Declared] = {}

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    @abstractmethod
    def _definitions(self) -> Definitions:
        """What makes definitions for this app."""

    @abstractmethod
    def _register_class(self, cls: type[Entity], name: str | None) -> None:
        """Register an entity class."""

    @abstractmethod
    def _register_function(self, cls: type[Entity], name: str, shard_group: str) -> None:
        """Register the entity class of a function."""

    def cron(
        self,
        when: object,
        /,
        *,
        name: str | None = None,
        entity_id: str | int | None = None,
        shard_group: str = DEFAULT_GROUP,
        turn: TurnOptions | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[F], F]:
        """Call a function or a handler of an entity, or start a workflow, at the times of a cron expression.

        Either takes nothing, or `scheduled_at`, the aware instant of the tick. Each call is a turn: what it sends is
        committed with it. A tick's workflow has the schedule's name and the nominal time as its key, as in
        `nightly.ref("nightly/2030-03-02T02:30:00")`. Workers store the schedule when they start.

        Args:
            when: A cron expression, an interval in seconds or as a timedelta, or a `crontab`, `schedule` or `solar`
                of Celery's.
            name: The schedule's name, and on the wire the function's; default: its own name.
            entity_id: Which entity's handler is called; for handlers.
            shard_group: The group whose workers run the function.
            turn: For functions, what `@handler(...)` takes: `turn={"autoretry_for": (OSError,)}`.

        Raises:
            ConfigurationError: The function or the options make no sense, or the name is taken.
        """

        def declare(function: F) -> F:
            handler: object = function
            if isinstance(handler, Handler):
                if entity_id is None:
                    raise ConfigurationError(f"@cron on the handler {handler.__name__} needs entity_id=")
                crons: list[_OnHandler] = handler.__dict__.setdefault("__entity_crons__", [])
                crons.append(_OnHandler(self, name, str(entity_id), when, options))
                return function
            if isinstance(handler, WorkflowDefinition):
                own_name = name or handler.body.name
                aim = partial(self._aim, handler, (), None, None)
                whose = f"{handler.__wrapped__.__module__}.{handler.__wrapped__.__qualname__}"
                self._declare(own_name, _Declared(when, aim, options, "code", whose))
                return function
            kind_name = name or function.__name__
            cls = entity_of(function, kind_name, handler_options(**(turn or {})))
            self._register_function(cls, kind_name, shard_group)
            target = EntityTarget(kind_name, THE_ID, OPERATION, "{}", shard_group, tells_when=True)
            whose = f"{function.__module__}.{function.__qualname__}"
            self._declare(kind_name, _Declared(when, lambda: target, options, "code", whose))
            return function

        return declare

    def _declare_handlers(self, kind: EntityType) -> None:
        for attribute in kind.attributes:
            crons: list[_OnHandler] = getattr(kind.cls, attribute).__dict__.get("__entity_crons__", [])
            for cron in crons:
                if cron.entities is self:
                    call = getattr(Ref(kind, cron.entity_id), attribute)
                    name = cron.name or f"{kind.name}/{cron.entity_id}.{attribute}"
                    aim = partial(self._aim, call, (), None, None)
                    whose = f"{kind.module}.{kind.cls.__qualname__}.{attribute}"
                    self._declare(name, _Declared(cron.when, aim, cron.options, "code", whose))

    def _declare_ticking(self, cls: Any, every_s: float | timedelta, name: str | None) -> EntityType:
        if "__entity_type__" not in vars(cls) or cls.__entity_type__ is None:
            self._register_class(cls, name)
        kind: EntityType = cls.__entity_type__
        if not kind.has_method(TICK):
            raise ConfigurationError(f"the singleton {kind.name} ticks, so it needs a handler `{TICK}`")
        aim = partial(self._aim, getattr(Ref(kind, SINGLETON_ID), TICK), (), None, None)
        whose = f"{kind.module}.{kind.cls.__qualname__}"
        self._declare(ticking_schedule(kind), _Declared(every_s, aim, ScheduleOptions(), "code", whose))
        return kind

    def beat_schedule(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Declare the entries of a `beat_schedule` of Celery's as they are, to be driven by the runners.

        Raises:
            ConfigurationError: An entry has no task, or a name is taken.
        """
        for name, entry in entries.items():
            self._declare(name, self._entry(name, entry, "code"))

    def _entry(self, name: str, entry: Mapping[str, Any], origin: Origin) -> _Declared:
        unknown = set(entry) - {"task", "schedule", "args", "kwargs", "options", "relative"}
        if unknown or not isinstance(entry.get("task"), str) or "schedule" not in entry:
            raise ConfigurationError(
                f"the entry {name!r} of a beat_schedule has a task, a schedule, and perhaps args, kwargs, options and "
                f"relative; got {', '.join(sorted(entry)) or 'nothing'}"
            )
        when = entry["schedule"]
        if entry.get("relative") and hasattr(when, "relative"):
            when.relative = True
        aim = partial(self._aim, entry["task"], entry.get("args") or (), entry.get("kwargs"), entry.get("options"))
        return _Declared(when, aim, ScheduleOptions(), origin, f"beat_schedule {name}")

    def _declare(self, name: str, declared: _Declared) -> None:
        known = self._declared.get(valid_name("a schedule", name))
        if known is not None and known.whose != declared.whose:
            raise ConfigurationError(f"two schedules are named {name!r}: {known.whose} and {declared.whose}")
        self._declared[name] = declared

    def store_schedules(self, *, prune: bool = False) -> tuple[list[str], list[str]]:
        """Store the schedules that are declared in code; workers do so when they start.

        One whose expression, zone and target are as before goes on where it is.

        Args:
            prune: Remove stored ones that came from code and are in it no more.

        Returns:
            The names of those declared, and of those removed.

        Raises:
            ConfigurationError: One makes no sense; the sentence names it.
        """
        parts = self._ready()
        timetable = parts.store.timetable
        for kind in parts.registry:
            self._declare_handlers(kind)
        definitions, now = self._definitions(), utc_from_epoch(timetable.now_epoch_s())
        new = [
            definitions.new(name, one.when, one.target(), one.options, one.origin, now=now, anchor=_EPOCH)
            for name, one in sorted(self._declared.items())
        ]
        timetable.put(new)
        stored = timetable.all() if prune else ()
        gone = [one.name for one in stored if one.origin == "code" and one.name not in self._declared]
        return [one.name for one in new], [name for name in gone if timetable.remove(name)]

    def _aim(self, *call: Any) -> Target:
        return self._definitions().target(*call)
