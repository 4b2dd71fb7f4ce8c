"""Celery's remote control of workers: `celery inspect entities`, `celery control entity_drain` and the like.

`celery control -d NODE entity_drain` and `celery control entity_drain NODE` mean the same.
"""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command, inspect_command

from entitycelery.app import entities_of
from entitycelery.worker.consumption import Consumption


@inspect_command(alias="entity_shards")
def entities(state: Any) -> dict[str, Any]:
    """What this worker hosts: shards, shards that drains work on, and whether it is starved, drained or leaving."""
    consumption = _consumption(state)
    if consumption is None:
        return {"hosting": False}
    settings = entities_of(state.app).settings
    return {
        "hosting": True,
        "cluster": settings.cluster,
        "groups": list(settings.shard_groups),
        "runner_pid": state.consumer.controller.entity_runner.pid,
        **consumption.described(),
    }


@control_command(args=[("node", str)], signature="[NODE]")
def entity_release_shards(state: Any, node: str | None = None) -> dict[str, Any]:
    """Hand all shards over and register anew: the runners share the shards out again."""
    return _told(state, node, lambda consumption: consumption.release(), "its shards are being handed over")


@control_command(args=[("node", str)], signature="[NODE]")
def entity_drain(state: Any, node: str | None = None) -> dict[str, Any]:
    """Hand all shards over and take none, until entity_resume or a restart; ordinary tasks go on."""
    return _told(state, node, lambda consumption: consumption.drain(True), "takes no shards")


@control_command(args=[("node", str)], signature="[NODE]")
def entity_resume(state: Any, node: str | None = None) -> dict[str, Any]:
    """Take shards again, after entity_drain."""
    return _told(state, node, lambda consumption: consumption.drain(False), "takes shards")


def _told(state: Any, node: str | None, tell: Any, ok: str) -> dict[str, Any]:
    if node is not None and node != state.hostname:
        return {"ok": f"not meant: {node} is"}
    consumption = _consumption(state)
    if consumption is None:
        return {"error": "this worker hosts no entities"}
    tell(consumption)
    return {"ok": ok}


def _consumption(state: Any) -> Consumption | None:
    found: Consumption | None = getattr(state.consumer.controller, "entity_consumption", None)
    return found
