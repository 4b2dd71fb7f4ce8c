"""A registered entity type: its wire name, its state model and its operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_origin

from entitycelery.address import quoted, valid_type_name
from entitycelery.exceptions import ConfigurationError, UnknownOperation
from entitycelery.handlers import Handler, Query
from entitycelery.operation import HandlerOptions, Operation
from entitycelery.port import Port, current_port, default_port
from entitycelery.shard_group import DEFAULT_GROUP, GroupRule, ShardGroup
from entitycelery.signals import SIGNAL
from entitycelery.state import StateModel, fields_of

OnFailure = Literal["skip", "block"]

_SQL_KINDS = {int: "int", float: "float", bool: "bool", str: "text"}

# On the wire: no method can be called so, and no handler may.
DELETE = "entity.delete"
LIBRARY_OPERATIONS = frozenset({DELETE, SIGNAL})

RESERVED_NAMES = frozenset({"turn", "ref", "expect", "remind", "reply_later"})


class EntityType:
    """What registration makes of an entity class.

    Raises:
        ConfigurationError: A field or method shadows a reserved name, a field has no default, two handlers share a
            name, or an annotation cannot be carried as JSON.
    """

    def __init__(
        self,
        cls: type,
        *,
        name: str | None = None,
        aliases: tuple[str, ...] = (),
        state_version: int = 1,
        on_failure: OnFailure = "skip",
        mailbox_capacity: int | None = None,
        shard_group: ShardGroup = DEFAULT_GROUP,
    ) -> None:
        self.cls = cls
        self.name = valid_type_name(name or cls.__name__)
        self.aliases = tuple(valid_type_name(alias) for alias in aliases)
        self.module = cls.__module__
        if on_failure not in ("skip", "block"):
            raise ConfigurationError(f"{self.name}: on_failure is 'skip' or 'block', got {on_failure!r}")
        if mailbox_capacity is not None and mailbox_capacity < 1:
            raise ConfigurationError(f"{self.name}: mailbox_capacity must be at least 1, got {mailbox_capacity}")
        if state_version < 1:
            raise ConfigurationError(f"{self.name}: state_version must be at least 1, got {state_version}")
        self.on_failure = on_failure
        self.mailbox_capacity = mailbox_capacity
        self._group = GroupRule(self.name, shard_group)
        self.port_source: Callable[[], Port] | None = None
        fields = fields_of(cls)
        _refuse_reserved_names(cls, self.name, fields)
        self.model = StateModel(cls, self.name, fields, state_version)
        self.queries: dict[str, Query[Any, Any, Any]] = {}
        self.operations: dict[str, Operation] = {}
        self.deletion = Operation(self.name, "delete", _delete, HandlerOptions(name=DELETE))
        """What every entity can be sent besides its operations: its turn ends the entity."""
        self._by_attribute: dict[str, Operation] = {}
        self._collect_methods()

    def operation(self, name: str) -> Operation:
        """The operation of this wire name.

        Raises:
            UnknownOperation: There is none.
        """
        try:
            return self.operations[name]
        except KeyError:
            known = ", ".join(sorted(self.operations)) or "none"
            raise UnknownOperation(f"{self.name} has no operation {quoted(name)}; it has: {known}") from None

    def operation_of(self, attribute: str) -> Operation:
        """The operation of the method of this name."""
        return self._by_attribute[attribute]

    @property
    def attributes(self) -> list[str]:
        """The names of the methods that are its operations."""
        return sorted(self._by_attribute)

    def has_method(self, attribute: str) -> bool:
        return attribute in self._by_attribute

    def port(self) -> Port:
        """Where calls go: the running turn, else this type's app, else the current app."""
        return current_port.get() or (self.port_source or default_port)()

    def group_of(self, entity_id: str) -> str:
        """The shard group of the entity of this id.

        Raises:
            ConfigurationError: The type's function failed, or gave what cannot be a group.
        """
        return self._group.of(entity_id)

    @property
    def constant_group(self) -> str | None:
        """The shard group of all entities of this type; None where a function says it for each."""
        return self._group.constant

    @property
    def view_name(self) -> str:
        """The SQL view that shows the states of this type."""
        return "state_" + re.sub(r"\W", "_", self.name).lower()

    @property
    def view_columns(self) -> dict[str, str]:
        """The columns of that view, one for each field: int, float, bool, text, or json for all else."""
        annotations = self.model.annotations
        return {name: _SQL_KINDS.get(_not_none(annotations[name]), "json") for name in self.model.fields}

    def _collect_methods(self) -> None:
        for attribute in dir(self.cls):
            member = getattr(self.cls, attribute, None)
            if isinstance(member, Query):
                self.queries[attribute] = member
            if not isinstance(member, Handler):
                continue
            operation = Operation(self.name, attribute, member.function, member.options_given)
            if operation.name in LIBRARY_OPERATIONS:
                raise ConfigurationError(f"{self.name}.{attribute}: the name {operation.name!r} is reserved")
            if operation.name in self.operations:
                other = self.operations[operation.name].attribute
                raise ConfigurationError(f"{self.name}: {other} and {attribute} are both named {operation.name!r}")
            self.operations[operation.name] = operation
            self._by_attribute[attribute] = operation


def _delete(entity: Any) -> None:
    entity.turn.delete()


def _refuse_reserved_names(cls: type, type_name: str, fields: dict[str, Any]) -> None:
    for name in sorted(RESERVED_NAMES):
        own = [base for base in cls.__mro__ if name in base.__dict__ and base.__name__ != "Entity"]
        if name in fields or own:
            raise ConfigurationError(
                f"{type_name}.{name} shadows a reserved name; entities reserve {', '.join(sorted(RESERVED_NAMES))}"
            )


def _not_none(annotation: Any) -> Any:
    options = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
    is_optional = get_origin(annotation) is None and len(options) == 1 and hasattr(annotation, "__or__")
    return options[0] if is_optional else annotation
