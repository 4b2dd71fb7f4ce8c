"""Loans that a human decides about, with a reminder, and an end if nobody does.

celery -A approval worker
python approval.py
"""

import importlib
import time
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

app = Celery("approval")
entities = EntityCelery(app)


@entities.register
class Loan(Entity):
    """Money that somebody wants."""

    amount: int = 0
    reminders: int = 0

    @handler
    def request(self, amount: int, patience_s: float) -> str:
        """Ask for a decision; the answer of this message is that decision."""
        self.amount = amount
        self.expect("decision", then=self.decided, on_timeout=self.expired, timeout_s=patience_s)
        self.remind("decision", self.write_again, after_s=patience_s / 3)
        return self.reply_later()

    @handler
    def write_again(self) -> None:
        """Write to whoever should decide, with what decides it."""
        self.reminders += 1
        Mailbox.ref("manager").receive.send(self.turn.id, self.turn.signal_token("decision"))

    @handler
    def decided(self, approved: bool) -> str:
        """A human has spoken."""
        self.turn.cancel_timer("decision")
        return f"{self.amount} {'approved' if approved else 'declined'} after {self.reminders} reminders"

    @handler
    def expired(self) -> str:
        """Nobody has."""
        return f"{self.amount} expired after {self.reminders} reminders"


@entities.register
class Mailbox(Entity):
    """Letters with tokens; in earnest these are e-mails with a link."""

    letters: dict[str, str] = {}

    @handler
    def receive(self, loan: str, token: str) -> None:
        """Keep a letter."""
        self.letters[loan] = token


def main() -> None:
    """Three people wait for an answer, and no worker does."""
    with ThreadPoolExecutor() as pool:
        asked = {
            name: pool.submit(Loan.ref(name).request.ask, amount, patience_s)
            for name, amount, patience_s in (("ada", 100, 60.0), ("bob", 200, 1.5), ("cid", 300, 1.5))
        }
        while not (bob := entities.state(Mailbox.ref("manager")).letters.get("bob")):
            time.sleep(0.05)
        print(", ".join(f"{signal.address.id} waits" for signal in entities.signals()))
        # One is decided by name, one by a token from a letter, one by nobody.
        entities.signal(Loan.ref("ada"), "decision").succeed(True)
        entities.signal(bob).succeed(False)
        print("too late:", entities.signal(bob).succeed(True))
        for name, answer in asked.items():
            print(f"{name}: {answer.result()}")


if __name__ == "__main__":
    importlib.import_module("approval").main()
