"""Durable, addressable entities for Celery.

`EntityCelery(app)` gives a Celery app entities with state and exactly-once messages; `celery worker` hosts them.
Importing this package is cheap: what is named below is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgspec import field

    from entitycelery.app import EntityCelery
    from entitycelery.calls import AsyncResult, Call, Prepared, Sent
    from entitycelery.context import Turn
    from entitycelery.entity import Entity
    from entitycelery.handlers import handler, query
    from entitycelery.message import Change, DeadLetter, DeadLetterFilter, EntityStatus, UnknownKind
    from entitycelery.registry import shared_entity
    from entitycelery.state import upgrade

__version__ = "0.1.0"

_HOMES = {
    "AsyncResult": "entitycelery.calls",
    "Call": "entitycelery.calls",
    "Change": "entitycelery.message",
    "DeadLetter": "entitycelery.message",
    "DeadLetterFilter": "entitycelery.message",
    "Entity": "entitycelery.entity",
    "EntityCelery": "entitycelery.app",
    "EntityStatus": "entitycelery.message",
    "Prepared": "entitycelery.calls",
    "Sent": "entitycelery.calls",
    "Turn": "entitycelery.context",
    "UnknownKind": "entitycelery.message",
    "field": "msgspec",
    "handler": "entitycelery.handlers",
    "query": "entitycelery.handlers",
    "shared_entity": "entitycelery.registry",
    "upgrade": "entitycelery.state",
}

__all__ = [
    "AsyncResult",
    "Call",
    "Change",
    "DeadLetter",
    "DeadLetterFilter",
    "Entity",
    "EntityCelery",
    "EntityStatus",
    "Prepared",
    "Sent",
    "Turn",
    "UnknownKind",
    "field",
    "handler",
    "query",
    "shared_entity",
    "upgrade",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
