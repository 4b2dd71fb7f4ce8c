"""One client process: calls ledgers one after the other, and writes down what it called and what it heard.

    python -m tests.chaos.client NAME FOLDER SEED

It goes on until FOLDER has a file `stop`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from entitycelery import exceptions as errors
from tests.chaos.app import Ledger, entities
from tests.history import Recorder

LEDGERS = 12
# A ledger is left for a fresh one after so many calls of a client, so that no turn grows slow.
CALLS_PER_LEDGERS = 300
ASK_TIMEOUT_S = 15.0
# A keyed call is made again until it has its answer, for so long.
PATIENCE_S = 60.0
# These say that the message has an end and that its turn changed nothing.
REFUSALS = (errors.HandlerFailed, errors.MessageExpired, errors.MessageCancelled, errors.KeyConflict)


class Client:
    """Its calls follow from its seed; how far it gets does not."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self._name = name
        self._stop = folder / "stop"
        self._recorder = Recorder(folder / f"{name}.history", name)
        self._random = random.Random(f"{seed}/{name}")

    def run(self) -> None:
        number = 0
        while not self._stop.exists():
            number += 1
            self._call(f"{self._name}:{number}", f"{number // CALLS_PER_LEDGERS}")

    def _call(self, entry: str, generation: str) -> None:
        ledger, other = (f"{number}-{generation}" for number in self._random.sample(range(LEDGERS), 2))
        choice = self._random.random()
        if choice < 0.05:
            self._read(entry, ledger)
            return
        to = other if choice < 0.35 else None
        is_keyed = self._random.random() < 0.5
        if self._random.random() < 0.7:
            self._ask(entry, ledger, to, is_keyed)
        else:
            self._send(entry, ledger, to, is_keyed)

    def _ask(self, entry: str, ledger: str, to: str | None, is_keyed: bool) -> None:
        self._recorder.invoke(entry, "ask", ledger, to)
        operation, arguments = _operation(entry, ledger, to)
        options = operation.options(timeout_s=ASK_TIMEOUT_S, key=entry if is_keyed else None)
        self._answered(entry, lambda: {"answer": options.ask(*arguments)}, repeat=is_keyed)

    def _send(self, entry: str, ledger: str, to: str | None, is_keyed: bool) -> None:
        self._recorder.invoke(entry, "send", ledger, to)
        operation, arguments = _operation(entry, ledger, to)
        options = operation.options(key=entry if is_keyed else None)
        self._answered(entry, lambda: {"message_id": options.send(*arguments).id}, repeat=is_keyed)

    def _read(self, entry: str, ledger: str) -> None:
        self._recorder.invoke(entry, "read", ledger)
        self._answered(entry, lambda: {"answer": len(entities.state(Ledger.ref(ledger)).entries)}, repeat=True)

    def _answered(self, entry: str, call: Any, *, repeat: bool) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        # Of a call that was made again: what it heard last before it succeeded.
        error: str | None = None
        while True:
            try:
                seen = call()
            except REFUSALS as exc:
                self._recorder.answer(entry, "failed", error=f"{type(exc).__name__}: {exc}")
                return
            except errors.EntityError as exc:
                error = f"{type(exc).__name__}: {exc}"
                if not repeat or time.monotonic() >= deadline_s:
                    self._recorder.answer(entry, "unknown", error=error)
                    return
                time.sleep(0.05)
                continue
            self._recorder.answer(entry, "ok", error=error, **seen)
            return


def _operation(entry: str, ledger: str, to: str | None) -> tuple[Any, tuple[str, ...]]:
    reference = Ledger.ref(ledger)
    return (reference.append, (entry,)) if to is None else (reference.pass_on, (entry, to))


if __name__ == "__main__":
    Client(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])).run()
