"""The app of the chaos tests' workers and clients; CHAOS_CONFIG is its configuration as JSON."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery

from entitycelery import EntityCelery
from tests.chaos.ledger import declare

app = Celery("chaos")
app.conf.update(json.loads(os.environ["CHAOS_CONFIG"]))
entities = EntityCelery(app)
Ledger = declare(entities)


@app.task(name="chaos.occupy")
def occupy(mark: str) -> None:
    """Keep a slot of the pool: say so by a file, until it is taken away."""
    Path(mark).touch()
    while Path(mark).exists():
        time.sleep(0.02)
