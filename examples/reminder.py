"""A basket that reminds its owner, by timers that come and go with its turns.

celery -A reminder worker
python reminder.py
"""

import importlib
import time

from celery import Celery

from entitycelery import Entity, EntityCelery, handler

app = Celery("reminder")
entities = EntityCelery(app)


@entities.register
class Basket(Entity):
    """What somebody wants to buy."""

    items: list[str] = []
    reminders: int = 0

    @handler
    def add(self, item: str, patience_s: float) -> None:
        """Add an item; the reminder is set anew, so it comes so long after the last one."""
        self.items.append(item)
        self.remind("forgotten", self.remember, after_s=patience_s)

    @handler
    def remember(self) -> None:
        """Write to the owner."""
        self.reminders += 1

    @handler
    def order(self) -> int:
        """Buy it all; nobody is reminded any more."""
        self.turn.cancel_timer("forgotten")
        return len(self.items)


def main() -> None:
    """One basket is ordered in time, the other is forgotten."""
    for name in ("alice", "bob"):
        for item in ("tea", "cup"):
            Basket.ref(name).add.ask(item, patience_s=1.0)
    print(f"alice orders {Basket.ref('alice').order.ask()} items")

    while not entities.state(Basket.ref("bob")).reminders:
        time.sleep(0.05)
    for name in ("alice", "bob"):
        basket = Basket.ref(name)
        print(f"{name}: {entities.state(basket).reminders} reminders, {len(entities.timers(basket))} timers")


if __name__ == "__main__":
    importlib.import_module("reminder").main()
