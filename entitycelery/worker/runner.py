"""The runner process: plain blocking code beside a worker, whatever the worker's pool.

Started by `RunnerProcess` with its settings on standard input; ends when its parent does.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import sys
import time
from typing import Any

from celery import Celery

from entitycelery.settings import Settings
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from entitycelery.transports.bell import Bell
from entitycelery.transports.broker import BrokerRinger
from entitycelery.worker.duties import CleanUp, CommitRelay, DueMail, Duty, Remains, Sweep
from entitycelery.worker.logs import set_up_runner_log

log = logging.getLogger("entitycelery.runner")

_CONNECTIONS = 2


def main() -> None:
    """Read the settings and do the duties until the parent ends."""
    # Ctrl-C reaches the whole process group; the worker tells us when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = _readable_on_sigterm()
    configuration: dict[str, Any] = pickle.load(sys.stdin.buffer)
    settings: Settings = configuration["settings"]
    set_up_runner_log(settings)
    store = SqlStore(
        driver_url(str(settings.database_url)),
        cluster=settings.cluster,
        shards_per_group=settings.shards_per_group,
        connections=_CONNECTIONS,
        timeout_s=settings.send_timeout_s,
    )
    app = Celery("entitycelery.runner", set_as_current=False)
    app.conf.update(configuration["broker"])
    bell = Bell(BrokerRinger(app, settings.cluster, settings.wakeup_expires_s), store.attended)
    duties = [
        Sweep(store, bell, settings),
        DueMail(store, bell, settings),
        CommitRelay(store, bell, settings),
        Remains(store, settings),
        CleanUp(store, settings),
    ]
    _run(duties, configuration["parent_pid"], stop)


def _readable_on_sigterm() -> int:
    """A file descriptor that can be read once SIGTERM has come.

    A handler that raised would do so wherever the process is just then, in the middle of a destructor too.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return readable


def _run(duties: list[Duty], parent_pid: int, stop: int) -> None:
    pause_s = 0.0
    while os.getppid() == parent_pid and not select.select([stop], [], [], pause_s)[0]:
        for duty in duties:
            duty.run_when_due(time.monotonic())
        pause_s = max(0.001, min(duty.next_at_s for duty in duties) - time.monotonic())


if __name__ == "__main__":
    main()
