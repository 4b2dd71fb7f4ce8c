"""The spool: the files that the folder transport is made of.

    incoming/                   files being written; each rename out of it changes its mtime: that is the bell
    queues/<queue>/<name>.json  one message; names sort by time of publishing
    queues/<queue>/lease        only with `x-expires`: ms that the queue outlives its consumer, who touches it
    exchanges/<exchange>/...    one file per binding
    bad/                        what could not be parsed, for a human to look at

Every change is one rename or one unlink; a folder that is missing counts as empty. What a message is, and who
may take it, is the channel's business (see folder).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

log = logging.getLogger(__name__)

LEFTOVER_AGE_S = 3600.0
LONGEST_NAME = 180


class Binding(NamedTuple):
    """One line of an exchange's table, as stored; `kind` is the exchange's type."""

    routing_key: str
    pattern: str
    queue: str
    kind: str


@dataclass
class Declared:
    """What a consumer needs to make its queue anew when somebody removed it."""

    auto_delete: bool = False
    expires_ms: int | None = None
    bindings: list[tuple[str, Binding]] = field(default_factory=list)


class Spool:
    """One broker's folder. Nothing is made before the first write."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.incoming = f"{root}/incoming"

    def queue(self, queue: str) -> str:
        return f"{self.root}/queues/{_escape(queue)}"

    def exchange(self, exchange: str) -> str:
        return f"{self.root}/exchanges/{_escape(exchange)}"

    def bell(self) -> int | None:
        """Return a stamp that changes when anything is published; None if nothing ever was."""
        try:
            return os.stat(self.incoming).st_mtime_ns
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes, *, create: bool = True) -> bool:
        """Let a whole file appear at `path`; False if its folder is missing and not to be created."""
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):
                self._write_and_rename(path, data)
                return True
            if not create and not os.path.isdir(os.path.dirname(path)):
                return False
            os.makedirs(self.incoming, exist_ok=True)
            os.makedirs(os.path.dirname(path), exist_ok=True)
        raise FileNotFoundError(f"folder of {path} is removed again and again")

    def _write_and_rename(self, path: str, data: bytes) -> None:
        temporary = f"{self.incoming}/{secrets.token_hex(8)}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def names(self, folder: str) -> list[str]:
        """Return the messages or bindings in `folder`, oldest first."""
        try:
            return sorted(name for name in os.listdir(folder) if name.endswith(".json"))
        except FileNotFoundError:
            return []

    def set_aside(self, path: str, reason: Exception) -> None:
        """Move a file that nobody can read out of the way."""
        os.makedirs(f"{self.root}/bad", exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, f"{self.root}/bad/{os.path.basename(path)}")
            log.error("broker file set aside", extra={"file": path, "reason": repr(reason)})

    def declare(self, queue: str, declared: Declared) -> None:
        folder = self.queue(queue)
        os.makedirs(self.incoming, exist_ok=True)
        os.makedirs(folder, exist_ok=True)
        if declared.expires_ms is not None:
            self.write(f"{folder}/lease", str(declared.expires_ms).encode())
        for exchange, binding in declared.bindings:
            path = self._binding(exchange, binding.queue, binding.routing_key)
            self.write(path, json.dumps(binding).encode())

    def renew(self, queue: str, declared: Declared) -> None:
        """Say that `queue` still has a consumer, and restore it if it is gone."""
        folder = self.queue(queue)
        try:
            os.utime(f"{folder}/lease")
        except FileNotFoundError:
            if declared.expires_ms is not None or not os.path.isdir(folder):
                self.declare(queue, declared)

    def lapsed(self, queue: str) -> bool:
        """Return whether the consumer of a queue with `x-expires` has been silent for too long."""
        lease = f"{self.queue(queue)}/lease"
        try:
            silent_s = time.time() - os.stat(lease).st_mtime
            return silent_s * 1000 > int(Path(lease).read_text())
        except (FileNotFoundError, ValueError):
            return False

    def bindings(self, exchange: str) -> Iterator[Binding]:
        folder = self.exchange(exchange)
        for name in self.names(folder):
            try:
                yield Binding(*json.loads(Path(folder, name).read_bytes().decode()))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError) as exc:
                self.set_aside(f"{folder}/{name}", exc)

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._binding(exchange, queue, routing_key))

    def delete(self, queue: str) -> None:
        """Remove a queue, its messages and its bindings.

        The folder goes in one step, so that no publisher can get in the way.
        """
        for path in Path(self.root, "exchanges").glob(f"*/{_escape(queue)}@*.json"):
            path.unlink(missing_ok=True)
        grave = f"{self.incoming}/{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.queue(queue), grave)
            shutil.rmtree(grave, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove what killed publishers left half written."""
        for path in Path(self.incoming).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def _binding(self, exchange: str, queue: str, routing_key: str) -> str:
        key = hashlib.sha256(routing_key.encode()).hexdigest()[:16]
        return f"{self.exchange(exchange)}/{_escape(queue)}@{key}.json"


@functools.lru_cache(maxsize=4096)
def _escape(name: str) -> str:
    escaped = quote(name, safe="")
    if escaped.startswith("."):
        escaped = f"%2E{escaped[1:]}"
    if len(escaped) > LONGEST_NAME:
        escaped = f"{escaped[:100]}~{hashlib.sha256(name.encode()).hexdigest()}"
    return escaped or "%"
