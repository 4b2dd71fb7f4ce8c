"""The bank under every task setting that could harm drains: BANK_HOSTILE names those that are on, or is `all`."""

from __future__ import annotations

import os
from typing import Any, NoReturn

from celery import Task
from kombu import Exchange, Queue

from tests.celery.apps.bank import app, entities, leave_mark

CLUSTER = app.conf.entity_cluster
LIMITS = {"task_time_limit": 1, "task_soft_time_limit": 1}
ANNOTATION = {"rate_limit": "1/h", "time_limit": 1, "soft_time_limit": 1, "acks_late": True, "ignore_result": False}

SETTINGS: dict[str, dict[str, Any]] = {
    "limits": LIMITS,
    "rate": {"task_default_rate_limit": "1/h"},
    "annotations": {"task_annotations": {"*": ANNOTATION}},
    "routes": {"task_routes": {"*": {"queue": f"{CLUSTER}.elsewhere"}}},
    "late": {"task_acks_late": True, "task_reject_on_worker_lost": True, "task_acks_on_failure_or_timeout": False},
    "eager": {"task_always_eager": True, "task_eager_propagates": True},
    "pickle": {"task_serializer": "pickle", "accept_content": ["pickle"], "result_serializer": "pickle"},
    "queues": {
        "task_create_missing_queues": False,
        "task_queues": [Queue(name, Exchange(name), name) for name in (f"{CLUSTER}.tasks", f"{CLUSTER}.elsewhere")],
    },
    "recycled": {"worker_max_tasks_per_child": 1},
    "memory": {"worker_max_memory_per_child": 1},
    "tracked": {"task_track_started": True, "task_send_sent_event": True, "worker_send_task_events": True},
    "compressed": {"task_compression": "gzip", "task_protocol": 1},
    "task-class": {},
    "unbuffered": {"worker_disable_prefetch": True},
    "prefetch": {"worker_prefetch_multiplier": 1, "worker_disable_rate_limits": False},
}


class OwnTask(Task):
    """A task class whose every hook fails: none is the drains' business."""

    abstract = True

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("a hook of the app's own task class was called")

    __call__ = _refuse
    before_start = _refuse
    after_return = _refuse
    on_success = _refuse
    on_failure = _refuse
    apply_async = _refuse


chosen = os.environ["BANK_HOSTILE"]
for name, settings in SETTINGS.items():
    if chosen in ("all", name):
        app.conf.update(settings)
if chosen in ("all", "task-class"):
    app.Task = OwnTask

__all__ = ["app", "entities", "leave_mark"]
