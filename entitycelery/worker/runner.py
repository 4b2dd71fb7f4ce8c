"""The runner process: plain blocking code beside a worker, whatever the worker's pool.

Started by `RunnerProcess` with its settings on standard input; ends when its worker does, or has let it go. Four
threads: the keeper of the leases, the listener to the worker, the one that looks after loops, where there are any, and
this one, which does the duties. None waits for another, so that a database that does not answer the one does not
silence the others.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery

from entitycelery.address import ShardId
from entitycelery.health.heartbeat import HeartbeatFile, heartbeat_file
from entitycelery.health.modes import health_of
from entitycelery.health.verdict import Condemned, Place
from entitycelery.placement import NewRunner
from entitycelery.settings import Settings
from entitycelery.sharding.keeper import Keeper
from entitycelery.singleton import LoopSpec
from entitycelery.storage.sql.dialects.deadline import answer_within
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from entitycelery.transports.bell import Bell
from entitycelery.transports.broker import BrokerRinger
from entitycelery.worker.due_mail import Announcements, DueMail
from entitycelery.worker.duties import CleanUp, Duty, FreshSweep, Remains, Sweep
from entitycelery.worker.link import RunnerEnd
from entitycelery.worker.logs import set_up_runner_log
from entitycelery.worker.loop_process import Home, LoopProcess
from entitycelery.worker.loops import Loops
from entitycelery.worker.timekeeper import Timekeeper

log = logging.getLogger("entitycelery.runner")

_CONNECTIONS = 3
# What was taken a moment ago is held until a predecessor's loop must have ended.
_LEAVING_S = 2.0


class KeptShards:
    """What the duties know of their runner: the keeper's leases, and the way to the worker."""

    def __init__(self, keeper: Keeper, link: RunnerEnd) -> None:
        self._keeper = keeper
        self._link = link

    @property
    def held(self) -> frozenset[ShardId]:
        return self._keeper.held

    @property
    def fresh(self) -> frozenset[ShardId]:
        return self._keeper.fresh

    @property
    def moved(self) -> int:
        return self._link.moved

    def settle_moved(self) -> None:
        self._link.settle_moved()

    @property
    def is_first(self) -> bool:
        return self._keeper.is_first

    def wake(self, shards: Sequence[ShardId]) -> None:
        self._link.wake(shards)


def main() -> None:
    """Read the settings and do the duties until the worker ends or has let us go."""
    # Ctrl-C and the signals of a process group are for the worker, which tells us when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = _readable_on_sigterm()
    configuration: dict[str, Any] = pickle.load(sys.stdin.buffer)
    settings: Settings = configuration["settings"]
    set_up_runner_log(settings)
    answer_within(2 * settings.send_timeout_s)
    store = SqlStore(
        driver_url(str(settings.database_url)),
        cluster=settings.cluster,
        shards_per_group=settings.shards_per_group,
        connections=_CONNECTIONS,
        timeout_s=settings.send_timeout_s,
        lock_mode=settings.lock_mode,
        lease_s=settings.lease_timeout_s,
        horizon_s=settings.due_horizon_s,
    )
    link = RunnerEnd(socket.socket(fileno=configuration["link"]))
    new: NewRunner = configuration["runner"]
    app = Celery("entitycelery.runner", set_as_current=False)
    app.conf.update(configuration["app"])
    health = health_of(Place(settings, app, new.address))
    keeper = Keeper(store, settings, link, new, Condemned(health, settings.suspect_after_s))
    hosting = KeptShards(keeper, link)
    loops = Loops(store, settings, new, keeper, configuration["loops"], _starter(configuration["home"]))
    for run in (link.listen, keeper.run, *([loops.run] if configuration["loops"] else [])):
        threading.Thread(target=run, name=f"entitycelery-{run.__qualname__}", daemon=True).start()
    due_mail = DueMail(store, hosting, settings)
    others = [duty(store, hosting, settings) for duty in (Sweep, FreshSweep, Remains, CleanUp)]
    bell = Bell(BrokerRinger(app, settings.cluster, settings.wakeup_expires_s), store.attended)
    timekeeper = Timekeeper(store, hosting, settings, bell)
    _run(
        # To listen comes before to look.
        [Announcements(store, hosting, settings, due_mail), due_mail, timekeeper, *others],
        keeper,
        configuration["parent_pid"],
        [stop, link.ended],
        heartbeat_file(settings, worker=new.worker, pid=new.pid),
    )
    if keeper.has_left and configuration["loops"]:
        loops.leave(settings.singleton_stop_timeout_s + _LEAVING_S)
    # Not the long way: a thread may wait for a database that does not answer.
    logging.shutdown()
    os._exit(0)


def _starter(home: Home) -> Callable[[LoopSpec], LoopProcess]:
    pid = os.getpid()
    return lambda spec: LoopProcess(spec, home, pid)


def _readable_on_sigterm() -> int:
    """A file descriptor that can be read once SIGTERM has come.

    A handler that raised would do so wherever the process is just then, in the middle of a destructor too.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return readable


def _run(
    duties: Sequence[Duty], keeper: Keeper, parent_pid: int, ends: Sequence[int], heartbeat: HeartbeatFile | None
) -> None:
    pause_s = 0.0
    while os.getppid() == parent_pid and not keeper.has_left:
        hastened = {descriptor: duty for duty in duties for descriptor in duty.interrupts}
        ready = select.select([*ends, *hastened], [], [], pause_s)[0]
        if not set(ends).isdisjoint(ready):
            return
        for descriptor in ready:
            hastened[descriptor].next_at_s = 0.0
        for duty in duties:
            if heartbeat is not None:
                heartbeat.beat_when_due()
            duty.run_when_due(time.monotonic())
        pause_s = max(0.0, min(duty.next_at_s for duty in duties) - time.monotonic())


if __name__ == "__main__":
    main()
