"""Ledgers that keep what was written to them in order: every kind of turn that can be cut short.

CRASH_CONFIG is the app's configuration as JSON. Where CRASH_POINTS is set, to a folder, this process can be made to
die at any point; with CRASH_TREE as well it takes its worker along.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from celery import Celery

from entitycelery import Entity, EntityCelery, handler
from entitycelery.storage.sql import floor
from tests.celery.apps.errors import InsufficientFunds, NotReady
from tests.crashes.points import Points

app = Celery("ledger")
app.conf.update(json.loads(os.environ["CRASH_CONFIG"]))
entities = EntityCelery(app)
points = None
if "CRASH_POINTS" in os.environ:
    points = Points(Path(os.environ["CRASH_POINTS"]), with_its_tree=bool(os.environ.get("CRASH_TREE")))
    points.lay()
    # Once a second their statements would be come by in few of the rounds.
    floor.RAISED_EVERY_S = 0.05


def around(what: str) -> Any:
    """The points around a step of the user's own."""
    return points.around(what) if points else nullcontext()


PAY = "INSERT INTO paid (ledger, sender, number) VALUES ('{ledger}', '{sender}', {number})"


@entities.register(on_failure="block")
class Ledger(Entity):
    entries: list[tuple[str, int]] = []

    @handler
    def write(self, sender: str, number: int) -> int:
        self.entries.append((sender, number))
        return number

    @handler
    def write_slowly(self, sender: str, number: int) -> None:
        """A turn long enough for its drain to give the rest back."""
        self.entries.append((sender, number))
        time.sleep(0.07)

    @handler
    async def write_asynchronously(self, sender: str, number: int) -> None:
        await asyncio.sleep(0.001)
        self.entries.append((sender, number))

    @handler
    def write_and_copy(self, sender: str, number: int) -> None:
        self.entries.append((sender, number))
        Ledger.ref(copy_of(self.turn.id)).write.send(sender, number)

    @handler
    def write_and_copy_once(self, sender: str, number: int) -> None:
        self.entries.append((sender, number))
        Ledger.ref(copy_of(self.turn.id)).write.options(key=f"{sender}-{number}").send(sender, number)

    @handler
    def refuse(self, sender: str, number: int) -> None:
        self.entries.append((sender, number))
        Ledger.ref(copy_of(self.turn.id)).write.send(sender, number)
        raise InsufficientFunds(0, number)

    @handler
    def contradict(self, sender: str, number: int) -> None:
        """Fails when it is committed: its two messages have one key."""
        self.entries.append((sender, number))
        for written in (number, number + 100):
            Ledger.ref(copy_of(self.turn.id)).write.options(key=f"{sender}-both").send(sender, written)

    @handler(autoretry_for=(NotReady,), max_retries=5, retry_backoff=0.02, retry_jitter=False)
    def write_at_second_try(self, sender: str, number: int) -> None:
        self.entries.append((sender, number))
        if self.turn.attempt == 0:
            raise NotReady

    @handler(autoretry_for=(NotReady,), max_retries=0)
    def give_up(self, sender: str, number: int) -> None:
        """Becomes a dead letter at once."""
        self.entries.append((sender, number))
        raise NotReady

    @handler
    def write_when_told(self, sender: str, number: int) -> None:
        """Is answered when somebody completes its signal."""
        self.entries.append((sender, number))
        self.expect(sender, then=self.be_told)
        return self.reply_later()

    @handler
    def be_told(self, number: int) -> None:
        Ledger.ref(told_of(self.turn.id)).write.send(self.turn.signal or "", number)

    @handler
    def tell(self, ledger: str, sender: str, number: int) -> None:
        """Completes a signal as part of its commit."""
        entities.signal(f"Ledger/{ledger}", sender).succeed(number)

    @handler
    def pay(self, sender: str, number: int) -> None:
        self.entries.append((sender, number))
        with around("the user's SQL"):
            self.turn.connection.exec_driver_sql(PAY.format(ledger=self.turn.id, sender=sender, number=number))
        Ledger.ref(copy_of(self.turn.id)).write.send(sender, number)


def told_of(name: str) -> str:
    return f"told of {name}"


def copy_of(name: str) -> str:
    return f"copy of {name}"
