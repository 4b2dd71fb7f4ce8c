"""Which entity types an app knows, and `@shared_entity` for those written before any app exists."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from entitycelery.address import Address, quoted
from entitycelery.entity import Entity
from entitycelery.entity_type import EntityType, OnFailure
from entitycelery.exceptions import ConfigurationError, UnknownEntityType
from entitycelery.shard_group import DEFAULT_GROUP, ShardGroup

T = TypeVar("T", bound=Entity)


class Registry:
    """The entity types of one app, by name and alias, on top of the shared ones."""

    def __init__(self, base: Registry | None = None) -> None:
        self._base = base
        self._types: dict[str, EntityType] = {}
        self._above: weakref.WeakSet[Registry] = weakref.WeakSet()
        if base is not None:
            base._above.add(self)

    def add(self, kind: EntityType) -> None:
        """Register a type.

        Raises:
            ConfigurationError: One of its names belongs to another class; both modules are named.
        """
        others = [self, *self._above, *([self._base] if self._base is not None else [])]
        for name, other in itertools.product((kind.name, *kind.aliases), others):
            known = other._types.get(name)
            if known and not _same_class(known.cls, kind.cls):
                raise ConfigurationError(
                    f"two entity types are named {name!r}: {known.cls.__qualname__} in {known.module} "
                    f"and {kind.cls.__qualname__} in {kind.module}"
                )
        for name in (kind.name, *kind.aliases):
            self._types[name] = kind
        kind.cls.__entity_type__ = kind  # type: ignore[attr-defined]

    def get(self, name: str) -> EntityType:
        """The type of this name or alias.

        Raises:
            UnknownEntityType: There is none.
        """
        kind = self._types.get(name)
        if kind is None and self._base is not None:
            kind = self._base._types.get(name)
        if kind is None:
            known = ", ".join(sorted({k.name for k in self})) or "none"
            raise UnknownEntityType(f"no entity type {quoted(name)} is registered with this app; it knows: {known}")
        return kind

    def group_of(self, address: Address) -> str:
        """The shard group of an entity, by its type's name or alias.

        Raises:
            UnknownEntityType: There is no such type here, so nobody here can know.
            ConfigurationError: The type's own function gave none.
        """
        return self.get(address.type).group_of(address.id)

    def aliases(self) -> dict[str, str]:
        """The types' own names by alias."""
        return {alias: kind.name for kind in self for alias in kind.aliases}

    def __iter__(self) -> Iterator[EntityType]:
        seen: dict[str, EntityType] = {}
        for registry in (self._base, self):
            for kind in registry._types.values() if registry is not None else ():
                seen[kind.name] = kind
        return iter(seen[name] for name in sorted(seen))


def _same_class(one: type, other: type) -> bool:
    # A module that is imported again (a reload, `__main__` under its own name) redefines its classes.
    return one is other or (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


shared_registry = Registry()


def register_with(
    registry: Registry, cls: Any, on_registered: Callable[[EntityType], None], options: dict[str, Any]
) -> Any:
    """Build the type of `cls` and add it to `registry`."""
    if not (isinstance(cls, type) and issubclass(cls, Entity)):
        raise ConfigurationError(f"an entity class derives from Entity, {cls!r} does not")
    kind = EntityType(cls, **options)
    on_registered(kind)
    registry.add(kind)
    return cls


@overload
def shared_entity(cls: type[T], /) -> type[T]: ...
@overload
def shared_entity(
    *,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    state_version: int = 1,
    on_failure: OnFailure = "skip",
    mailbox_capacity: int | None = None,
    shard_group: ShardGroup = DEFAULT_GROUP,
) -> Callable[[type[T]], type[T]]: ...
def shared_entity(cls: Any = None, /, **options: Any) -> Any:
    """Register an entity class with every app, as Celery's `shared_task` does; calls go to the current app.

    The options are those of `EntityCelery.register`.
    """

    def register(target: type[T]) -> type[T]:
        registered: type[T] = register_with(shared_registry, target, lambda kind: None, options)
        return registered

    return register if cls is None else register(cls)
