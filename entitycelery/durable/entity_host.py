"""What the calls of a body become in its entity's turn: messages, signals, and a wish to go on."""

from __future__ import annotations

from typing import Any

import msgspec

from entitycelery import codec
from entitycelery.address import Address
from entitycelery.answering import Asker
from entitycelery.celery_tasks import CALL, TASKS_TYPE
from entitycelery.durable.task_call import TaskCall
from entitycelery.effects import CallOptions, Send


class EntityHost:
    """The body's calls, as what the entity does in its turn."""

    def __init__(self, entity: Any) -> None:
        self._entity = entity
        self._turn = entity.turn

    def now_epoch_s(self) -> float:
        return float(self._turn.now_epoch_s())

    def go_on(self) -> None:
        self._entity.go_on.send()

    def expect(self, name: str, timeout_s: float | None) -> None:
        entity = self._entity
        entity.expect(
            name,
            then=entity.signalled,
            on_timeout=None if timeout_s is None else entity.late,
            on_failure=entity.refused,
            timeout_s=timeout_s,
        )

    def withdraw(self, name: str) -> None:
        self._turn.withdraw(name)

    def ask(self, label: str, send: Send) -> None:
        self._turn.ask_by_mail(send, label, self._group())

    def send_task(self, label: str, task: TaskCall, task_id: str) -> None:
        asker = Asker(self._group(), label, self._turn.address)
        what = f"the arguments of the task {task.name}"
        args = codec.to_canonical_json({**msgspec.structs.asdict(task), "task_id": task_id, "asker": str(asker)}, what)
        address = Address(TASKS_TYPE, task.name)
        self._turn.send([Send(address=address, operation=CALL, args=args, options=CallOptions())])

    def _group(self) -> str:
        return str(type(self._entity).__entity_type__.group_of(self._turn.id))
