"""A bank as a user would write it: accounts, and journals that keep what was written to them, in order.

BANK_CONFIG is the app's configuration as JSON; in BANK_FOLDER handlers leave marks and wait for marks.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import time
from pathlib import Path

from celery import Celery
from celery.result import allow_join_result

from entitycelery import Entity, EntityCelery, handler, query
from tests.celery.apps.errors import InsufficientFunds, NotReady

log = logging.getLogger("bank")
FOLDER = Path(os.environ["BANK_FOLDER"])

app = Celery("bank")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))
entities = EntityCelery(app)


@entities.register
class Account(Entity):
    balance: int = 0
    notes: list[str] = []

    @handler
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    @handler
    def transfer(self, amount: int, to: str) -> int:
        self.balance -= amount
        if self.balance < 0:
            raise InsufficientFunds(self.balance + amount, amount)
        Account.ref(to).deposit.send(amount)
        return self.balance

    @handler
    async def deposit_slowly(self, amount: int, pause_s: float) -> int:
        await asyncio.sleep(pause_s)
        self.balance += amount
        return self.balance

    @handler
    def note(self, text: str) -> None:
        self.notes.append(text)

    @query
    def statement(self) -> int:
        return self.balance


@entities.register
class Journal(Entity):
    """Keeps every entry: what is lost, doubled or out of order shows."""

    entries: list[tuple[str, int]] = []

    @handler
    def write(self, sender: str, number: int) -> int:
        """Write one entry; the process that did it."""
        self.entries.append((sender, number))
        return os.getpid()

    @handler
    def write_later(self, number: int, delay_s: float) -> str:
        """Send oneself a message that writes one entry later; its id."""
        return Journal.ref(self.turn.id).stamp.options(delay_s=delay_s).send(number).id

    @handler
    def write_at_leisure(self, sender: str, number: int, pause_s: float = 0.003) -> int:
        """Write one entry, in a turn long enough to be hit by a signal."""
        time.sleep(pause_s)
        self.entries.append((sender, number))
        return os.getpid()

    @handler
    def hold(self, sender: str, number: int, name: str) -> int:
        """Tell where this runs, wait until it may go on, write."""
        leave_mark(f"{name}.started", str(os.getpid()))
        while not (FOLDER / f"{name}.go").exists():
            time.sleep(0.01)
        self.entries.append((sender, number))
        return os.getpid()

    @handler
    def end_coldly_and_hold(self, sender: str, number: int, name: str) -> int:
        """Have the worker of this process end, by a signal that comes while this runs, as `hold` does."""
        if not (FOLDER / f"{name}.started").exists():
            leave_mark(f"{name}.started", str(os.getpid()))
            os.kill(os.getpid(), signal.SIGQUIT)
        return self.hold(sender, number, name)

    @handler
    def write_alone(self, sender: str, number: int, pause_s: float = 0.02) -> int:
        """Write one entry, in a turn that tells if another one runs meanwhile, anywhere."""
        with (FOLDER / f"{self.turn.id}.alone").open("w") as file:
            try:
                # The kernel takes it back from whoever dies with it.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                leave_mark(f"{self.turn.id}.not-alone", str(os.getpid()))
            time.sleep(pause_s)
            self.entries.append((sender, number))
        return number

    @handler
    def die(self) -> None:
        """End the process as a crash would."""
        self.entries.append(("dead", 0))
        Journal.ref("witness").write.send("dead", 0)
        os.kill(os.getpid(), signal.SIGKILL)

    @handler(turn_timeout_s=0.5)
    def hang(self) -> None:
        self.entries.append(("hung", 0))
        leave_mark("hang.started", str(os.getpid()))
        time.sleep(600)

    @handler(turn_timeout_s=0.5)
    async def hang_asynchronously(self) -> None:
        self.entries.append(("hung", 0))
        await asyncio.sleep(600)

    @handler(autoretry_for=(NotReady,), max_retries=5, retry_backoff=0.5, retry_jitter=False)
    def write_when_ready(self, number: int, name: str) -> int:
        """Write once a mark is there; the attempt that did it."""
        leave_mark(f"{name}.tried", str(self.turn.attempt))
        self.entries.append(("early", number))
        if not (FOLDER / f"{name}.go").exists():
            raise NotReady(name)
        self.entries[-1] = ("ready", number)
        return self.turn.attempt

    @handler(autoretry_for=(NotReady,), max_retries=1, retry_backoff=0.05)
    def write_twice_at_most(self, name: str) -> None:
        leave_mark(f"{name}.tried", str(self.turn.attempt))
        self.entries.append(("early", 0))
        raise NotReady(name)

    @handler
    def say(self, text: str) -> None:
        """Log, as a user's code does: with fields that have names of ours too."""
        log.warning("%s", text, extra={"shard": "of pizza", "table": 4})

    @handler
    async def say_asynchronously(self, text: str) -> None:
        log.warning("%s", text)

    @handler
    def stamp(self, number: int) -> float:
        """Write one entry; when it was."""
        self.entries.append(("stamp", number))
        return time.time()

    @query
    def of(self, sender: str) -> list[int]:
        """The numbers that a sender wrote, in their order here."""
        return [number for name, number in self.entries if name == sender]


@app.task(name="bank.leave_mark")
def leave_mark_task(name: str) -> None:
    leave_mark(name, str(os.getpid()))


@app.task(name="bank.ask")
def ask_in_task(account: str, *, allowed: bool) -> None:
    """Ask inside a task, with or without Celery's permission to wait there, and note what came of it."""
    try:
        if allowed:
            with allow_join_result():
                outcome = f"got {Account.ref(account).deposit.ask(5)}"
        else:
            outcome = f"got {Account.ref(account).deposit.ask(5)}"
    except RuntimeError as exc:
        outcome = f"refused: {exc}"
    Account.ref(f"{account}-notes").note.send(outcome)


def leave_mark(name: str, text: str) -> None:
    """Write a file that is either absent or complete."""
    draft = FOLDER / f"{name}.{os.getpid()}.draft"
    draft.write_text(text)
    draft.rename(FOLDER / name)
