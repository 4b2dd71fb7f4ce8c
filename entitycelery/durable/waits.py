"""What a body waits for: time, signals, answers, Celery tasks, children."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from entitycelery import codec
from entitycelery.calls import Call, checked_instant, checked_s
from entitycelery.clock import epoch_from
from entitycelery.durable.cursor import Cursor, moment_s, return_type, typed
from entitycelery.durable.journal import Entry
from entitycelery.durable.options import Options
from entitycelery.durable.task_call import task_call
from entitycelery.exceptions import ReplyTimeout
from entitycelery.failures import exception_from
from entitycelery.limits import valid_name
from entitycelery.operation import Operation
from entitycelery.signals import failure_of

TASK_LOST_AFTER_S = 3_600.0
"""How long a Celery task may take until it counts as lost, unless its call says otherwise."""


class Waits:
    """The waiting calls of one run, and `send`, which waits for nothing."""

    def __init__(self, at: Cursor) -> None:
        self._at = at

    async def sleep(self, options: Options, duration_s: float | timedelta) -> None:
        options.only("sleep")
        checked_duration_s = checked_s("sleep(...)", duration_s) or 0.0
        self._sleep(lambda now_epoch_s: now_epoch_s + checked_duration_s, duration_s)

    async def sleep_until(self, options: Options, instant: datetime) -> None:
        options.only("sleep_until")
        checked_instant("sleep_until(...)", instant)
        self._sleep(lambda _: epoch_from(instant), instant)

    def _sleep(self, until: Callable[[float], float], given: object) -> None:
        _, entry = self._at.next("sleep", "", given)
        if entry.state == "done":
            return
        now_epoch_s = self._at.host.now_epoch_s()
        if self._at.begin(entry):
            entry.due_epoch_s = moment_s(until(now_epoch_s))
        if (entry.due_epoch_s or 0.0) > now_epoch_s:
            self._at.wait(entry)
        entry.finish(now_epoch_s)

    async def wait(self, options: Options, name: str, value_type: Any) -> Any:
        timeout_s = options.only("wait", "timeout_s").timeout_s
        valid_name("a signal", name)
        _, entry = self._at.next("wait", name)
        if entry.state == "pending":
            withdraw = lambda: self._at.host.withdraw(name)  # noqa: E731 - one line
            if self._at.begin(entry, withdraw):
                self._at.host.expect(name, timeout_s)
            self._at.wait(entry, withdraw)
        if entry.failure is not None:
            raise exception_from(entry.failure, address=self._at.address, message_id="")
        return typed(entry.value, value_type, f"the value of the signal {name!r} of {self._at.address}")

    def send(self, options: Options, call: Call[..., Any], args: Any, kwargs: Any) -> None:
        options.only("send")
        _, entry = self._at.next("send", call.operation.label, args, kwargs)
        if entry.state == "pending":
            self._at.begin(entry)
            call.send(*args, **kwargs)
            entry.finish(self._at.host.now_epoch_s())

    async def ask(self, options: Options, call: Call[..., Any], args: Any, kwargs: Any) -> Any:
        timeout_s = options.only("ask", "timeout_s").timeout_s
        label, entry = self._at.next("ask", call.operation.label, args, kwargs)
        if entry.state == "pending":
            if self._at.begin(entry):
                self._at.host.ask(label, call.prepare(*args, **kwargs).send)
                self._wait_at_most(entry, timeout_s)
            if not self._is_late(entry):
                self._at.wait(entry)
        return self._answer(label, entry, call.operation)

    async def child(self, options: Options, workflow: Any, args: Any, kwargs: Any) -> Any:
        options.only("child", "timeout_s", "parent_close_policy")
        label, entry = self._at.next("child", workflow.__name__, args, kwargs)
        run = workflow.ref(f"{self._at.id}/{label}")
        if entry.state == "pending":

            def withdraw() -> None:
                if options.parent_close_policy != "abandon":
                    run.cancel()

            if self._at.begin(entry, withdraw):
                self._at.host.ask(label, run.starting(*args, **kwargs).send)
                self._wait_at_most(entry, options.timeout_s)
            if not self._is_late(entry):
                self._at.wait(entry, withdraw)
            withdraw()
        return self._answer(label, entry, run.operation)

    async def task(self, options: Options, celery_task: Any, args: Any, kwargs: Any) -> Any:
        lost_after_s = options.only("task", "timeout_s").timeout_s or TASK_LOST_AFTER_S
        task = task_call(celery_task, args, kwargs)
        label, entry = self._at.next("task", task.name, args, kwargs)
        if entry.state == "pending":
            begins, now_epoch_s = self._at.begin(entry), self._at.host.now_epoch_s()
            if begins or (entry.due_epoch_s or 0.0) <= now_epoch_s:
                if begins:
                    entry.value = str(uuid.uuid4())
                else:
                    entry.attempt += 1
                self._at.host.send_task(label, task, entry.value)
                self._wait_at_most(entry, lost_after_s)
            self._at.wait(entry)
        if entry.failure is not None:
            raise exception_from(entry.failure, address=self._at.address, message_id=f"{self._at.address}#{label}")
        what = f"the result of the task {task.name} for {self._at.address}"
        return typed(entry.value, return_type(getattr(celery_task, "run", celery_task)), what)

    def _wait_at_most(self, entry: Entry, timeout_s: float | None) -> None:
        if timeout_s is not None:
            entry.due_epoch_s = moment_s(self._at.host.now_epoch_s() + timeout_s)

    def _is_late(self, entry: Entry) -> bool:
        """Whether its time is over; then it has failed."""
        now_epoch_s = self._at.host.now_epoch_s()
        if entry.due_epoch_s is None or entry.due_epoch_s > now_epoch_s:
            return False
        sentence = f"{entry.described()} of {self._at.address} was not answered in time"
        entry.finish(now_epoch_s, failure=failure_of(ReplyTimeout, sentence))
        return True

    def _answer(self, label: str, entry: Entry, operation: Operation) -> Any:
        if entry.failure is not None:
            raise exception_from(entry.failure, address=self._at.address, message_id=f"{self._at.address}#{label}")
        return operation.decode_result(codec.to_json(entry.value, f"an answer to {self._at.address}").decode())
