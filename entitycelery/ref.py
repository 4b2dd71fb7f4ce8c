"""References: `Account.ref("alice")`, an address that offers the operations and queries of its type.

Typed as the entity class itself; at run time small, and on anything but an operation or a query it says what to
write instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from entitycelery.address import Address, valid_entity_id
from entitycelery.calls import Call
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError
from entitycelery.handlers import Query
from entitycelery.message import StoredState


class Ref:
    """A reference to one entity. Equal references are equal values; `str(ref)` is the address."""

    __slots__ = ("_address", "_kind")

    def __init__(self, kind: EntityType, entity_id: str | int) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_address", Address(kind.name, valid_entity_id(entity_id)))

    def __getattr__(self, name: str) -> Any:
        kind: EntityType = self._kind
        if kind.has_method(name):
            return Call(kind.operation_of(name), self._address, kind.port, kind.mailbox_capacity)
        if name in kind.queries:
            return _query(kind, self._address, kind.queries[name])
        if name in kind.model.fields:
            raise ConfigurationError(
                f"{self._address}.{name}: a reference holds no state; "
                f"read it with entities.state(ref).{name} or write a @query"
            )
        raise AttributeError(f"{kind.name} has no handler or query {name!r}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ConfigurationError(
            f"{self._address}.{name} = ...: a reference holds no state; change it in a handler of {self._kind.name}"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other._address == self._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __str__(self) -> str:
        return str(self._address)

    def __repr__(self) -> str:
        return f"<Ref {self._address}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _ref_of, (self._kind.cls, self._address.id)


def _ref_of(cls: Any, entity_id: str) -> Any:
    # What a pickled reference is read with: by the class, since its type holds what cannot be pickled.
    return cls.ref(entity_id)


def address_of(ref: object) -> Address:
    """The address that a reference stands for.

    Raises:
        ConfigurationError: It is no reference.
    """
    if not isinstance(ref, Ref):
        raise ConfigurationError(f"expected a reference such as Account.ref('alice'), got {ref!r}")
    address: Address = ref._address
    return address


def kind_of(ref: object) -> EntityType:
    """The entity type of a reference."""
    address_of(ref)
    kind: EntityType = ref._kind  # type: ignore[attr-defined]
    return kind


def entity_from(kind: EntityType, stored: StoredState) -> Any:
    """The entity as committed, for reading; a new one where there is none."""
    return kind.model.new() if stored.state is None else kind.model.load(stored.state, stored.state_version)


def _query(kind: EntityType, address: Address, query: Query[Any, Any, Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return query.function(entity_from(kind, kind.port().load(address)), *args, **kwargs)

    run.__name__ = query.attribute
    run.__doc__ = query.__doc__
    return run
