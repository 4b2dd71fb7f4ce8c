"""The process of a loop: imports the app as its worker did, waits until it may run, and runs it.

Started by the runner process with what it needs on standard input. Ends with the runner process, at once.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from celery.app.utils import find_app

from entitycelery.exceptions import EntityError
from entitycelery.loop import Heartbeats, Loop, LoopContext, registered_loop
from entitycelery.settings import Settings
from entitycelery.singleton import LoopSpec
from entitycelery.telemetry import span
from entitycelery.worker.logs import set_up_loop_log
from entitycelery.worker.loop_line import Ended, Loaded, LoopEnd
from entitycelery.worker.loop_process import Home

log = logging.getLogger("entitycelery.singleton")

_PR_SET_PDEATHSIG = 1
_LONGEST_FAILURE = 2_000


def main() -> None:
    """Run one loop once."""
    # Ctrl-C and the signals of a process group are for the worker, whose runner process tells us when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configuration: dict[str, Any] = pickle.load(sys.stdin.buffer)
    end_with(configuration["runner_pid"])
    spec: LoopSpec = configuration["spec"]
    home: Home = configuration["home"]
    line = LoopEnd(socket.socket(fileno=configuration["link"]))
    set_up_loop_log(home.settings, spec.name)
    try:
        loop = load(spec, home)
    except BaseException as exc:
        line.say(_failure(exc))
        raise
    signal.signal(signal.SIGTERM, lambda *_: line.stop.set())
    line.say(Loaded())
    go = line.await_go()
    if go is None or line.stop.is_set():
        return
    line.say(run(loop, go.fence, line.stop))
    loop.owner.close()


def end_with(runner_pid: int) -> None:
    """Have the kernel end this process with its parent; where it cannot, the line's end does."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None and prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != runner_pid:
        # It was gone before the kernel knew.
        os._exit(os.EX_TEMPFAIL)


def load(spec: LoopSpec, home: Home) -> Loop:
    """Import the app as the worker did, and find the loop.

    Raises:
        ConfigurationError: What is imported registers no such loop.
        Exception: Whatever the app raises when it is imported.
    """
    sys.path[:] = home.path
    if home.app is not None:
        # Where the app is made by a factory nothing else attaches the entities to it.
        find_app(home.app)
    importlib.import_module(spec.module)
    loop = registered_loop(spec)
    entities = loop.owner
    entities.override(**_said(home.settings))
    entities.app.conf.update(home.conf)
    entities.app.set_current()
    entities.app.loader.import_default_modules()
    return loop


def run(loop: Loop, fence: int, stop: threading.Event) -> Ended:
    """Run it until it returns, with its hooks and its heartbeats; how it ended."""
    beats = Heartbeats()
    context = LoopContext(loop.name, fence, beats)
    beating = threading.Thread(target=_beat, args=(loop, fence, beats), name="entitycelery-heartbeat", daemon=True)
    beating.start()
    log.info("singleton %s runs", loop.name, extra={"singleton": loop.name, "fence": fence})
    try:
        with span("entity.singleton", singleton=loop.name, fence=fence):
            loop.call_hook("on_become_leader", context)
            loop.run(stop, context)
    except BaseException as exc:
        ended = _failure(exc)
        log.error("singleton %s failed", loop.name, exc_info=True, extra={"singleton": loop.name, "fence": fence})
    else:
        ended = Ended(None)
    if stop.is_set():
        _say_goodbye(loop, context)
    return ended


def _say_goodbye(loop: Loop, context: LoopContext) -> None:
    try:
        loop.call_hook("on_lose_leadership", context)
    except Exception:
        log.exception("on_lose_leadership of %s failed", loop.name, extra={"singleton": loop.name})


def _beat(loop: Loop, fence: int, beats: Heartbeats) -> None:
    """Write heartbeats until the process ends."""
    pause = threading.Event()
    while not pause.wait(loop.spec.heartbeat_interval_s):
        if not beats.take():
            continue
        try:
            loop.owner.store.roster.beat(loop.name, fence)
        except EntityError as exc:
            log.warning("the heartbeat of %s could not be written: %s", loop.name, exc)
        except Exception:
            log.exception("the heartbeat of %s could not be written", loop.name)


def _failure(exc: BaseException) -> Ended:
    text = "".join(traceback.format_exception_only(exc)).strip()[:_LONGEST_FAILURE]
    # Anything may be in it, and not everything is text to a database.
    return Ended(text.encode(errors="backslashreplace").decode().replace("\0", "\\0"))


def _said(settings: Settings) -> dict[str, Any]:
    """The worker's settings, as its command line, its environment and its app made them."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}


if __name__ == "__main__":
    main()
