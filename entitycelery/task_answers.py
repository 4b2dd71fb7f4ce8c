"""Results of Celery tasks on their way back to the workflows that wait for them.

A task that a workflow sent has a header that says whom to answer. Whichever worker of the app runs it stores the
result as a message, under the task's id, so that the first result counts and is handled once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
from celery import Celery, signals, states
from celery.exceptions import TaskRevokedError

from entitycelery import codec
from entitycelery.answering import ANSWERED, Asker, Said, asker_of
from entitycelery.celery_tasks import ASKER_HEADER
from entitycelery.effects import CallOptions, Send
from entitycelery.exceptions import KeyConflict, SerializationFailed
from entitycelery.failures import failure_from
from entitycelery.message import Failure, Status
from entitycelery.port import Port, current_port


class TaskAnswers:
    """Answers for the tasks of one app."""

    def __init__(self, app: Celery, port: Callable[[], Port]) -> None:
        self._app = app
        self._port = port
        # Celery keeps receivers by weak references: these last as long as whoever has this object.
        signals.task_postrun.connect(self._over)
        signals.task_revoked.connect(self._revoked)

    def _over(self, task_id: str, task: Any, retval: Any, state: str, **_: Any) -> None:
        asker = self._asker(task, task.request.headers)
        if asker is None:
            return
        if state == states.SUCCESS:
            self._answer(asker, task_id, _result_of(task.name, task_id, retval))
        elif state == states.FAILURE:
            self._answer(asker, task_id, failure_from(retval))

    def _revoked(self, sender: Any, request: Any, **_: Any) -> None:
        # Both kinds of requests that Celery sends: that of the consumer, and that of a task which runs.
        headers = getattr(request, "request_dict", None) or getattr(request, "headers", None)
        asker = self._asker(sender, headers)
        if asker is None:
            return
        failure = failure_from(TaskRevokedError(f"the task {sender.name}[{request.id}] was revoked"))
        # It comes on the thread that consumes, which is not to wait for a database.
        threading.Thread(target=self._answer, args=(asker, request.id, failure), daemon=True).start()

    def _asker(self, task: Any, headers: Any) -> Asker | None:
        return asker_of((headers or {}).get(ASKER_HEADER)) if getattr(task, "app", None) is self._app else None

    def _answer(self, asker: Asker, task_id: str, outcome: msgspec.Raw | Failure) -> None:
        if isinstance(outcome, Failure):
            said = Said(asker.call, Status.FAILED, failure=outcome)
        else:
            said = Said(asker.call, Status.DONE, outcome)
        send = Send(
            address=asker.address,
            operation=ANSWERED,
            args=codec.to_canonical_json(said, "an answer"),
            options=CallOptions(key=task_id),
        )
        try:
            (current_port.get() or self._port()).send([send])
        except KeyConflict:
            # It ran twice, and the first result counts.
            return


def _result_of(name: str, task_id: str, retval: Any) -> msgspec.Raw | Failure:
    try:
        return msgspec.Raw(codec.to_json(retval, f"the result of the task {name}[{task_id}]"))
    except SerializationFailed as exc:
        return failure_from(exc)
