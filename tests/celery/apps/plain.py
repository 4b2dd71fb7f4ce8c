"""A Celery app that knows nothing of entities."""

from __future__ import annotations

import json
import os
from pathlib import Path

from celery import Celery

app = Celery("plain")
app.conf.update(json.loads(os.environ["BANK_CONFIG"]))


@app.task(name="bank.leave_mark")
def leave_mark(name: str) -> None:
    (Path(os.environ["BANK_FOLDER"]) / name).write_text(str(os.getpid()))
