"""An app with schedules: one in code, one in `beat_schedule`. CLOCKWORK says what it is to have."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import text

from entitycelery import Entity, EntityCelery, handler

FOLDER = Path(os.environ["BANK_FOLDER"])

app = Celery("clockwork")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))
entities = EntityCelery(app)


@entities.register
class Clock(Entity):
    """Keeps the instants of its ticks."""

    ticks: list[datetime] = []

    @handler
    def tick(self, scheduled_at: datetime) -> None:
        self.ticks.append(scheduled_at)


@entities.register
class Witness(Entity):
    """Keeps when something was due, and when it came: by the database's clock, within the turn."""

    seen: list[tuple[float, float]] = []

    @handler
    def come(self, due_s: float) -> None:
        self.seen.append((due_s, float(self.turn.connection.scalar(text(f"SELECT {self._now()}")))))

    def _now(self) -> str:
        is_sqlite = self.turn.connection.dialect.name == "sqlite"
        return "entity_now()" if is_sqlite else "extract(epoch FROM clock_timestamp())"

    @handler
    def wall_clock_s(self) -> float:
        """What this process takes for the time."""
        return time.time()

    @handler
    def tick(self, scheduled_at: datetime) -> None:
        self.come(scheduled_at.timestamp())

    @handler
    def wind(self, first_s: float) -> None:
        """Set a timer of a second that fires first at that moment."""
        self.remind("second", self.ring.prepare(first_s), at=datetime.fromtimestamp(first_s, UTC), every_s=1)

    @handler
    def ring(self, first_s: float) -> None:
        # Moments that were missed are made up for by one call: so this one was due then, or later.
        self.come(first_s + len(self.seen))


if os.environ.get("CLOCKWORK") == "code":

    @entities.cron(1, name="every-second")
    def every_second(scheduled_at: datetime) -> None:
        Clock.ref("code").tick.send(scheduled_at)


if os.environ.get("CLOCKWORK") == "nonsense":

    @entities.cron("0 0 30 2 *")
    def never() -> None: ...


if os.environ.get("CLOCKWORK") == "beat":
    app.conf.beat_schedule = {"chime": {"task": "clockwork.chime", "schedule": 1.0, "args": ("beat",)}}


@app.task(name="clockwork.chime", bind=True)  # type: ignore[untyped-decorator]
def chime(self: Any, text: str) -> None:
    with (FOLDER / "chimes").open("a") as chimes:
        chimes.write(f"{self.request.id} {text}\n")
