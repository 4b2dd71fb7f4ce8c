"""A loop that runs on exactly one worker: it watches a folder, and tells an entity what it finds.

celery -A leader_loop worker
python leader_loop.py
"""

import threading
import time
from pathlib import Path

from celery import Celery

from entitycelery import Entity, EntityCelery, LoopContext, handler

app = Celery("leader_loop")
entities = EntityCelery(app)

INBOX = Path("inbox")


@entities.register
class Order(Entity):
    """An order that came as a file."""

    text: str | None = None
    fence: int = 0

    @handler
    def arrive(self, text: str, fence: int) -> bool:
        """Keep it. A loop that was thought dead and wakes up is too late."""
        if fence < self.fence:
            return False
        self.text, self.fence = text, fence
        return True


@entities.singleton(restart_backoff_s=0.5)
def watch_inbox(stop: threading.Event, context: LoopContext) -> None:
    """Take files out of the folder. Nobody else does so at the same time, however many workers there are."""
    INBOX.mkdir(exist_ok=True)
    while not stop.wait(0.1):
        context.heartbeat()
        for file in sorted(INBOX.glob("*.order")):
            # The file goes once the message is stored; a crash between the two repeats the send, with the same key.
            arrive = Order.ref(file.stem).arrive.options(key=file.stem)
            arrive.send(file.read_text(), context.fence)
            file.unlink()


def main() -> None:
    """Put files into the folder, wait for the orders, and have the loop start again in between."""
    INBOX.mkdir(exist_ok=True)
    put("17", "2 tea")
    wait_for("17")
    before = watcher_fence()
    entities.restart_singleton("watch_inbox")
    put("18", "1 coffee")
    wait_for("18")
    wait_until(lambda: watcher_fence() > before)
    print("the later loop has the larger fence")


def put(name: str, text: str) -> None:
    """Write a file, and let it appear whole."""
    draft = INBOX / f"{name}.draft"
    draft.write_text(text)
    draft.rename(INBOX / f"{name}.order")


def wait_for(name: str) -> None:
    """Wait until an order has arrived."""
    wait_until(lambda: entities.exists(Order.ref(name)))
    print(f"order {name}: {entities.state(Order.ref(name)).text}")


def wait_until(check) -> None:
    """Wait until something is true."""
    while not check():
        time.sleep(0.05)


def watcher_fence() -> int:
    """The fence of the loop as it runs now."""
    [watcher] = entities.singletons()
    return watcher.fence


if __name__ == "__main__":
    main()
