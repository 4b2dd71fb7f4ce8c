"""Durable, addressable entities for Celery.

`EntityCelery(app)` gives a Celery app entities with state and exactly-once messages; `celery worker` hosts them.
Importing this package is cheap: what is named below is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgspec import field

    from entitycelery.address import ShardId
    from entitycelery.app import EntityCelery
    from entitycelery.calls import AsyncResult, Call, Prepared, Sent
    from entitycelery.client.schedule_status import ScheduleStatus
    from entitycelery.context import Turn
    from entitycelery.durable.definition import WorkflowDefinition, WorkflowRun, WorkflowStatus
    from entitycelery.durable.flow import AsyncWorkflow, Workflow
    from entitycelery.entity import Entity
    from entitycelery.handlers import handler, query
    from entitycelery.loop import LoopContext
    from entitycelery.message import (
        Change,
        DeadLetter,
        DeadLetterFilter,
        EntityStatus,
        Failure,
        PendingSignal,
        Timer,
        UnknownKind,
    )
    from entitycelery.placement import Lease, Placement, Runner, ShardStatus
    from entitycelery.registry import shared_entity
    from entitycelery.reshard_plan import GroupPlan, ReshardPlan
    from entitycelery.scheduler.tick import Tick
    from entitycelery.signalling import Signal
    from entitycelery.signals import SignalOutcome
    from entitycelery.singleton import Singleton
    from entitycelery.state import upgrade

__version__ = "0.1.0"

_HOMES = {
    "AsyncResult": "entitycelery.calls",
    "AsyncWorkflow": "entitycelery.durable.flow",
    "Call": "entitycelery.calls",
    "Change": "entitycelery.message",
    "DeadLetter": "entitycelery.message",
    "DeadLetterFilter": "entitycelery.message",
    "Entity": "entitycelery.entity",
    "EntityCelery": "entitycelery.app",
    "EntityStatus": "entitycelery.message",
    "Failure": "entitycelery.message",
    "GroupPlan": "entitycelery.reshard_plan",
    "Lease": "entitycelery.placement",
    "LoopContext": "entitycelery.loop",
    "PendingSignal": "entitycelery.message",
    "Placement": "entitycelery.placement",
    "Prepared": "entitycelery.calls",
    "ReshardPlan": "entitycelery.reshard_plan",
    "Runner": "entitycelery.placement",
    "ScheduleStatus": "entitycelery.client.schedule_status",
    "Sent": "entitycelery.calls",
    "Signal": "entitycelery.signalling",
    "SignalOutcome": "entitycelery.signals",
    "Singleton": "entitycelery.singleton",
    "ShardId": "entitycelery.address",
    "ShardStatus": "entitycelery.placement",
    "Tick": "entitycelery.scheduler.tick",
    "Timer": "entitycelery.message",
    "Turn": "entitycelery.context",
    "UnknownKind": "entitycelery.message",
    "Workflow": "entitycelery.durable.flow",
    "WorkflowDefinition": "entitycelery.durable.definition",
    "WorkflowRun": "entitycelery.durable.definition",
    "WorkflowStatus": "entitycelery.durable.definition",
    "field": "msgspec",
    "handler": "entitycelery.handlers",
    "query": "entitycelery.handlers",
    "shared_entity": "entitycelery.registry",
    "upgrade": "entitycelery.state",
}

__all__ = [
    "AsyncResult",
    "AsyncWorkflow",
    "Call",
    "Change",
    "DeadLetter",
    "DeadLetterFilter",
    "Entity",
    "EntityCelery",
    "EntityStatus",
    "Failure",
    "GroupPlan",
    "Lease",
    "LoopContext",
    "PendingSignal",
    "Placement",
    "Prepared",
    "ReshardPlan",
    "Runner",
    "ScheduleStatus",
    "Sent",
    "ShardId",
    "ShardStatus",
    "Signal",
    "SignalOutcome",
    "Singleton",
    "Tick",
    "Timer",
    "Turn",
    "UnknownKind",
    "Workflow",
    "WorkflowDefinition",
    "WorkflowRun",
    "WorkflowStatus",
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
