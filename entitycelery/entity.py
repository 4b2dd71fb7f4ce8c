"""`Entity`, the base class of what users write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, dataclass_transform

import msgspec

from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError
from entitycelery.ref import Ref
from entitycelery.state import Field, fields_of

if TYPE_CHECKING:
    from entitycelery.context import Turn


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Entity:
    """An addressed unit of state and behaviour.

    Annotated attributes with a default are its durable state; `ClassVar` and `_private` names are not. A value that
    is not a constant is given as `msgspec.field(default_factory=...)`, or as it is: each entity gets its own copy.
    Assigning an attribute that is not declared is an error.

    `Account(balance=5).deposit(5)` is a plain object without any app: a unit test. A stored entity is restored
    without calling `__init__`.
    """

    __entity_type__: ClassVar[EntityType | None] = None
    __entity_fields__: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__entity_fields__ = fields_of(cls)
        cls.__entity_type__ = None

    def __init__(self, **values: Any) -> None:
        fields = type(self).__entity_fields__
        unknown = [name for name in values if name not in fields]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no state field {unknown[0]!r}; it has: {', '.join(fields)}")
        state = {name: values[name] if name in values else field.factory() for name, field in fields.items()}
        self.__dict__.update(state, _extra_fields={})

    @classmethod
    def ref(cls, entity_id: str | int) -> Self:
        """A reference to the entity of this id, typed as the class; it offers the handlers' verbs and the queries.

        Raises:
            ConfigurationError: The class is not registered with an app, or the id is not valid.
        """
        kind = cls.__entity_type__
        if kind is None:
            raise ConfigurationError(
                f"{cls.__name__} is not registered: put @entities.register or @shared_entity above the class"
            )
        return cast("Self", Ref(kind, entity_id))

    @property
    def turn(self) -> Turn:
        """The turn that is handling a message of this entity.

        Raises:
            ConfigurationError: The entity was made by hand or is read by a query, so there is no turn.
        """
        turn = self.__dict__.get("_turn")
        if turn is None:
            raise ConfigurationError(f"self.turn exists only while a message of {type(self).__name__} is handled")
        return cast("Turn", turn)

    def __setattr__(self, name: str, value: object) -> None:
        cls = type(self)
        if name in cls.__entity_fields__ or name.startswith("_") or isinstance(getattr(cls, name, None), property):
            object.__setattr__(self, name, value)
            return
        raise AttributeError(
            f"{cls.__name__} has no state field {name!r}: declare it in the class with an annotation and a default"
        )

    def __repr__(self) -> str:
        state = ", ".join(f"{name}={self.__dict__.get(name)!r}" for name in type(self).__entity_fields__)
        return f"{type(self).__name__}({state})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(self.__dict__.get(n) == other.__dict__.get(n) for n in type(self).__entity_fields__)

    __hash__ = None  # type: ignore[assignment]
