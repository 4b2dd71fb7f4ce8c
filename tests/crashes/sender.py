"""A sender that goes through every way to send, and goes on where an earlier life of it was cut off.

Started once; each line on its input is the number of a round and begins a life, in a fork, since importing takes longer
than all the sending. It answers with the exit status of that life.

What is known to be stored is noted in the file <CRASH_POINTS>/sent-<round>, one step a line.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from entitycelery.ref import address_of
from tests.crashes.apps.ledger import PAY, Ledger, around, entities, points
from tests.crashes.steps import SENDER, STEPS


def _send(ledger: Any, numbers: list[int]) -> None:
    ledger.write.send(SENDER, numbers[0])


def _send_keyed(ledger: Any, numbers: list[int]) -> None:
    ledger.write.options(key=str(numbers[0])).send(SENDER, numbers[0])


def _ask(ledger: Any, numbers: list[int]) -> None:
    assert ledger.write.ask(SENDER, numbers[0]) == numbers[0]


def _send_many(ledger: Any, numbers: list[int]) -> None:
    entities.send_many([ledger.write.prepare(SENDER, number) for number in numbers])


def _send_many_keyed(ledger: Any, numbers: list[int]) -> None:
    entities.send_many([ledger.write.options(key=str(number)).prepare(SENDER, number) for number in numbers])


def _send_later(ledger: Any, numbers: list[int]) -> None:
    ledger.write.options(key=str(numbers[0]), delay_s=0.05).send(SENDER, numbers[0])


def _send_unique(ledger: Any, numbers: list[int]) -> None:
    ledger.write.options(key="mutex", unique="reject").send(SENDER, numbers[0])


def _in_transaction(*, key: bool, commit: bool) -> Callable[[Any, list[int]], None]:
    def act(ledger: Any, numbers: list[int]) -> None:
        number = numbers[0]
        engine = create_engine(entities.store.url)
        with engine.connect() as conn:
            if not (key and _has_paid(conn, ledger, number)):
                conn.exec_driver_sql(PAY.format(ledger=address_of(ledger).id, sender=SENDER, number=number))
                call = ledger.write.options(connection=conn, key=str(number) if key else None)
                call.send(SENDER, number)
            with around("the sender's own commit" if commit else "the sender's own rollback"):
                conn.commit() if commit else conn.rollback()
        engine.dispose()

    return act


def _has_paid(conn: Any, ledger: Any, number: int) -> bool:
    found = conn.exec_driver_sql(f"SELECT 1 FROM paid WHERE ledger = '{address_of(ledger).id}' AND number = {number}")  # noqa: S608
    return found.first() is not None


ACTS: dict[str, Callable[[Any, list[int]], None]] = {
    "a first send": _send,
    "a send soon after": _send,
    "a keyed send": _send_keyed,
    "a keyed send repeated": _send_keyed,
    "many": _send_many,
    "many with keys": _send_many_keyed,
    "in a transaction": _in_transaction(key=False, commit=True),
    "with a key in a transaction": _in_transaction(key=True, commit=True),
    "rolled back": _in_transaction(key=False, commit=False),
    "with a key that is a mutex": _send_unique,
    "with a delay": _send_later,
    "asked": _ask,
    "a last send": _send,
}


def main() -> None:
    """Live once for every line of input."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _live(line.strip())
            except BaseException:  # noqa: BLE001 - this life ends here, and the loop is its parent's
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _live(name: str) -> None:
    assert points is not None
    journal = Path(os.environ["CRASH_POINTS"]) / f"sent-{name}"
    begun = len(journal.read_text().splitlines()) if journal.exists() else 0
    ledger = Ledger.ref(name)
    with points.watching(), journal.open("a", buffering=1) as done:
        for number, step in enumerate(STEPS[begun:]):
            # The first step of a later life may be stored already: only with a key may it be sent again.
            is_unknown = number == 0 and journal.with_suffix(".begun").exists()
            if is_unknown and not step.again:
                print(f"unknown {step.name}", file=done)
                continue
            journal.with_suffix(".begun").touch()
            with points.part(step.name):
                ACTS[step.name](ledger, step.numbers)
            print(f"sent {step.name}", file=done)


if __name__ == "__main__":
    main()
