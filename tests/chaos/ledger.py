"""The entity of the chaos tests: an append-only list that tells where it put an entry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from entitycelery import Entity, EntityCelery, handler
from tests.history import passed

# Long enough to be hit by a signal.
TURN_S = 0.001
# A turn that nobody releases ends by itself.
ATTEMPT_S = 2.0


def declare(entities: EntityCelery) -> Any:
    """The entity type, registered with this app."""

    @entities.register
    class Ledger(Entity):
        entries: list[str] = []

        @handler
        def append(self, entry: str) -> int:
            self.entries.append(entry)
            time.sleep(TURN_S)
            return len(self.entries) - 1

        @handler
        def pass_on(self, entry: str, to: str) -> int:
            """Append, and send the entry on in the same commit."""
            Ledger.ref(to).append.send(passed(entry))
            self.entries.append(entry)
            time.sleep(TURN_S)
            return len(self.entries) - 1

        @handler
        def append_when(self, entry: str, began: str, may_end: str) -> int:
            """Append once a file is there; each attempt adds a byte to another one."""
            with Path(began).open("a") as file:
                file.write(".")
            deadline_s = time.monotonic() + ATTEMPT_S
            while not Path(may_end).exists() and time.monotonic() < deadline_s:
                time.sleep(0.02)
            self.entries.append(entry)
            return len(self.entries) - 1

    return Ledger
