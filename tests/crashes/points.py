"""Points at which a process can be made to die: before and after each statement, each ring, each call of user code.

Laid into worker and sender processes by the test's own app, and nowhere else. No point is written down here: they
are named after what the library does when it does it, so a new statement is a new point by itself.

    <folder>/seen        the name of every point that some process has come by, one a line
    <folder>/plan/<n>    a point to die at; the process that removes the file dies, the files go in order
    <folder>/deaths      who died where and when, one a line
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from entitycelery.runtime import turn as turn_module
from entitycelery.runtime.host import Host
from entitycelery.storage.sql import statement as statement_module
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.storage.sql.store import SqlStore
from entitycelery.transports.broker import BrokerRinger

_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE)\s+(?:entity_\w+\.)?(?!unnest|json_|entity_)([a-z]\w*)")
_FUNCTION = re.compile(r"\b(pg_\w+)")
_LOOK = "Mailboxes.candidates"
_PLUMBING = (statement_module.__file__, contextmanager.__code__.co_filename, __file__)


class Points:
    """The points of one process."""

    def __init__(self, folder: Path, *, with_its_tree: bool = False) -> None:
        self._folder = folder
        self._with_its_tree = with_its_tree
        self._seen: set[str] = set()
        self._watching = 0
        self._part = ""
        self._doing = threading.local()
        self._last: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._prepared: dict[str, str] = {}
        (folder / "plan").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Only what happens in here is a point: the start of a worker is none."""
        self._watching += 1
        try:
            yield
        finally:
            self._watching -= 1

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens in here has points of its own."""
        self._part = f"{name}: "
        try:
            yield
        finally:
            self._part = ""

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """The two points around a step. A step that raises has no second one."""
        self.come_by(f"before {self._part}{what}")
        yield
        self.come_by(f"after {self._part}{what}")

    def come_by(self, name: str) -> None:
        """Die here, if that is the plan."""
        if not self._watching:
            return
        if name not in self._seen:
            self._seen.add(name)
            _append(self._folder / "seen", name)
        for planned in sorted((self._folder / "plan").iterdir())[:1]:
            if _read(planned) == name and _remove(planned):
                _append(self._folder / "deaths", f"{time.time()} {os.getpid()} {name}")
                self._die()

    def _die(self) -> None:
        if self._with_its_tree:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    # Where the points are

    def lay(self) -> None:
        """Wrap the places where the library leaves its own process."""
        execute = statement_module._execute
        statement_module._execute = lambda conn, text, params: self._statement(execute, conn, text, params)  # type: ignore[attr-defined]
        self._wrap(BrokerRinger, "ring", lambda *_: "ring")
        self._wrap(turn_module, "call", lambda prepared, _: f"call {prepared.operation.name}")
        turn_module.acall = self._asynchronous(turn_module.acall)  # type: ignore[assignment]
        for owner in (SqlDrainSession, SqlStore):
            for name in [name for name in vars(owner) if not name.startswith("_")]:
                if inspect.isfunction(vars(owner)[name]):
                    setattr(owner, name, self._named(vars(owner)[name]))
        drain = Host.drain

        @functools.wraps(drain)
        def watched(*args: Any, **how: Any) -> Any:
            with self.watching():
                return drain(*args, **how)

        Host.drain = watched  # type: ignore[method-assign]

    def _statement(self, execute: Callable[..., Any], conn: Any, text: str, params: Any) -> Any:
        if text.startswith("PREPARE "):
            # It ends with the session: dying at it is dying at the statement it prepares.
            self._prepared[text.split()[1]] = text.partition(" AS ")[2]
            return execute(conn, text, params)
        if not self._watching:
            return execute(conn, text, params)
        gist = " + ".join(self._gist(one) for one in text.split("; "))
        with self.around(f"{self._doing_now()}: {gist}"):
            return execute(conn, text, params)

    def _gist(self, text: str) -> str:
        if text.startswith("EXECUTE "):
            text = self._prepared[text.removeprefix("EXECUTE ").partition("(")[0]]
        about = _TABLE.search(text) or _FUNCTION.search(text)
        return " ".join(filter(None, [text.split()[0], about and about[1]]))

    def _doing_now(self) -> str:
        frame: Any = sys._getframe(1)
        while frame.f_code.co_filename in _PLUMBING:
            frame = frame.f_back
        inner = frame.f_code.co_qualname.partition(".<locals>")[0]
        if inner == _LOOK:
            return f"look after {self._doing.before}"
        doing = getattr(self._doing, "names", [])
        return f"{doing[0]}, {inner}" if doing else inner

    def _named(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Have the points inside a method say so; the looks for mail say what the drain did before."""
        name = method.__name__

        @functools.wraps(method)
        def named(owner: Any, *args: Any, **how: Any) -> Any:
            names = self._doing.__dict__.setdefault("names", [])
            self._doing.before = self._last.get(owner, "beginning")
            self._last[owner] = name
            names.append(name)
            try:
                return method(owner, *args, **how)
            finally:
                names.pop()

        return named

    def _wrap(self, owner: Any, attribute: str, what: Callable[..., str]) -> None:
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def wrapped(*args: Any) -> Any:
            with self.around(what(*args)):
                return function(*args)

        setattr(owner, attribute, wrapped)

    def _asynchronous(self, acall: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(acall)
        async def wrapped(prepared: Any, turn: Any) -> Any:
            with self.around(f"call {prepared.operation.name}"):
                return await acall(prepared, turn)

        return wrapped


def _append(path: Path, line: str) -> None:
    # One write: what several processes append does not mix.
    with path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
