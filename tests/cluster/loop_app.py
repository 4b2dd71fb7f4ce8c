"""The app of the tests of loops: one that writes down whenever it runs, and obeys files in its worker's folder."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from entitycelery import LoopContext
from tests.chaos.app import Ledger, app, entities
from tests.cluster import diary

_EVERY_S = 0.01

if "-n" in sys.argv:
    # The process of a loop has its worker's environment, and no command line.
    os.environ["DIARY_NODE"] = sys.argv[sys.argv.index("-n") + 1].partition("@")[0]
elif app.conf.get("loops_are_broken"):
    raise ImportError("as the test wants it")


def become_leader(context: LoopContext) -> None:
    diary.write(context.fence, "leads")


def lose_leadership(context: LoopContext) -> None:
    diary.write(context.fence, "leads no more")


@entities.singleton(
    on_become_leader=become_leader,
    on_lose_leadership=lose_leadership,
    restart_backoff_s=0.5,
    restart_backoff_max_s=4.0,
    heartbeat_interval_s=0.5,
)
def watched(stop: threading.Event, context: LoopContext) -> None:
    """Write a line again and again, and now and then send."""
    diary.write(context.fence, "begins")
    if Path(diary.FAILS).exists():
        raise ValueError("as the test wants it")
    Ledger.ref("loop").append.send(str(context.fence))
    while not stop.is_set() or Path(diary.DEAF).exists():
        # Not by the event: it is to write to the last moment.
        time.sleep(_EVERY_S)
        diary.write(context.fence, "runs")
        if Path(diary.RETURNS).exists():
            return
    diary.write(context.fence, "ends")


__all__ = ["app", "entities"]
