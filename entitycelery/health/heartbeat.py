"""The heartbeat file: written by the runner's loop, so that a loop that is stuck shows from outside.

Reading it needs neither database nor broker nor app. Written and read on one machine, by its clock.
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import msgspec

from entitycelery.clock import utc_from_epoch
from entitycelery.exceptions import ConfigurationError
from entitycelery.settings import Settings

log = logging.getLogger("entitycelery.health")

_MARGIN_S = 2.0


class Heartbeat(msgspec.Struct, frozen=True):
    """One beat."""

    worker: str
    """The token of the worker, as its runner is registered with."""
    pid: int
    """Of the worker's parent process."""
    at: str
    """The instant, for people."""
    at_epoch_s: float
    fresh_s: float
    """How long it is good for: no beat later than this, and the loop is stuck."""

    def age_s(self, now_epoch_s: float) -> float:
        """How old it is; a beat from the future has the age by which it lies there."""
        # After the clock was set back such a beat would else be fresh for as long.
        return abs(now_epoch_s - self.at_epoch_s)

    def is_fresh(self, now_epoch_s: float, max_age_s: float | None = None) -> bool:
        """Whether the loop went round lately; `max_age_s` in place of what the beat says itself."""
        return self.age_s(now_epoch_s) <= (self.fresh_s if max_age_s is None else max_age_s)


def fresh_for_s(settings: Settings) -> float:
    """How long a beat of a runner is good for.

    A database that does not answer holds a duty up for two send time-outs, and is no reason to end the worker.
    """
    return 3 * settings.refresh_interval_s + 2 * settings.send_timeout_s + _MARGIN_S


class HeartbeatFile:
    """The file of one runner. A reader finds a whole beat or none."""

    def __init__(self, path: str | Path, *, worker: str, pid: int, every_s: float, fresh_s: float) -> None:
        self._path = Path(path)
        self._worker = worker
        self._pid = pid
        self._every_s = every_s
        self._fresh_s = fresh_s
        self._next_at_s = -math.inf
        self._is_failing = False

    def beat_when_due(self) -> None:
        """Write a beat if the last is old enough; a file that cannot be written is logged."""
        if time.monotonic() < self._next_at_s:
            return
        self._next_at_s = time.monotonic() + self._every_s
        try:
            self.beat()
            self._is_failing = False
        except ConfigurationError as exc:
            if not self._is_failing:
                log.warning("%s", exc)
            self._is_failing = True

    def beat(self) -> None:
        """Write a beat of now.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        now_epoch_s = time.time()
        at = utc_from_epoch(now_epoch_s).isoformat(timespec="milliseconds")
        heartbeat = Heartbeat(self._worker, self._pid, at, now_epoch_s, self._fresh_s)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.draft")
        try:
            draft.write_bytes(msgspec.json.encode(heartbeat))
            draft.replace(self._path)
        except OSError as exc:
            raise ConfigurationError(f"entity_health_file cannot be written: {exc}") from exc


def heartbeat_file(settings: Settings, *, worker: str, pid: int) -> HeartbeatFile | None:
    """The file that the settings name, if they name one."""
    if settings.health_file is None:
        return None
    every_s = settings.refresh_interval_s
    return HeartbeatFile(settings.health_file, worker=worker, pid=pid, every_s=every_s, fresh_s=fresh_for_s(settings))


def read_heartbeat(path: str | Path) -> Heartbeat | None:
    """The last beat; None where there is no file, or it holds something else.

    Raises:
        OSError: It is there and cannot be read.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Heartbeat)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
