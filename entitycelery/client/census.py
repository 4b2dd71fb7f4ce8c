"""Which stored messages, dead letters and states the code of this app does not know. Decides, and reads nothing."""

from __future__ import annotations

from collections.abc import Sequence

from entitycelery.entity_type import LIBRARY_OPERATIONS, EntityType
from entitycelery.exceptions import UnknownEntityType
from entitycelery.message import StoredKind, UnknownKind
from entitycelery.registry import Registry


def unknown_kinds(stored: Sequence[StoredKind], registry: Registry) -> list[UnknownKind]:
    """Those kinds that a worker with these types could not handle or load, each with the reason."""
    found = []
    for kind in stored:
        why = _why(kind, registry)
        if why is not None:
            state_version = kind.state_version if kind.stored == "state" else None
            found.append(UnknownKind(kind.stored, kind.type, kind.operation or None, state_version, kind.count, why))
    return found


def _why(stored: StoredKind, registry: Registry) -> str | None:
    try:
        kind = registry.get(stored.type)
    except UnknownEntityType:
        return "no such type"
    return _why_state(stored, kind) if stored.stored == "state" else _why_mail(stored, kind)


def _why_mail(stored: StoredKind, kind: EntityType) -> str | None:
    if stored.operation in kind.operations or stored.operation in LIBRARY_OPERATIONS:
        return None
    return f"{kind.name} has no such operation"


def _why_state(stored: StoredKind, kind: EntityType) -> str | None:
    if stored.type != kind.name:
        return f"an alias of {kind.name}: states are read under {kind.name} only"
    return kind.model.why_unreadable(stored.state_version)
