"""The app of the chaos tests, whose pool processes also write down every drain: when, where, of which shards."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from celery import signals

from entitycelery.telemetry import Span, listen
from tests.chaos.app import Ledger, app, entities, occupy
from tests.cluster.invariants import DRAINS


class DrainNotes:
    """One line a drain, in the worker's folder, before the drain does anything."""

    def began(self, span: Span) -> None:
        if span.name != "entity.drain":
            return
        line = {"at_s": time.time(), "node": _node(), "pid": os.getpid(), "shards": list(span.fields["shards"])}
        file = os.open(DRAINS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, json.dumps(line).encode() + b"\n")
        os.close(file)

    def ended(self, span: Span) -> None:
        return

    def happened(self, name: str, fields: Mapping[str, Any]) -> None:
        return


def _node() -> str:
    return sys.argv[sys.argv.index("-n") + 1].partition("@")[0]


def say_goodbye(**_: Any) -> None:
    """What a user's finalizer may do: it sends."""
    Ledger.ref("goodbyes").append.send(f"{_node()}:{os.getpid()}")


if "-n" in sys.argv:
    listen(DrainNotes())
if app.conf.get("says_goodbye"):
    for signal in (signals.worker_shutting_down, signals.worker_shutdown, signals.worker_process_shutdown):
        signal.connect(say_goodbye)

__all__ = ["app", "entities", "occupy"]
