"""Spans and events: what is done and how long it takes, told to whoever listens.

A span is a piece of work with a beginning and an end; an event is a moment. Names are dotted and lower case, values
are fields. The library only calls `span` and `happened`; an exporter is a listener.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Protocol

log = logging.getLogger("entitycelery.telemetry")


class Span:
    """A piece of work. A context manager: it begins on entry and ends on exit, also by an exception.

    Attributes:
        name: What is done, for example `entity.turn`.
        parent: The span of the same thread or task within which this one began.
        duration_s: Seconds from beginning to end; None until it has ended.
        error: The exception by which it ended, if one left the block.
    """

    __slots__ = ("_began_s", "_fields", "_token", "duration_s", "error", "name", "parent")

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name = name
        self.parent: Span | None = None
        self.duration_s: float | None = None
        self.error: BaseException | None = None
        self._fields = fields
        self._began_s = 0.0
        self._token: Token[Span | None] | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """What is known of the work so far."""
        return self._fields

    def add(self, **fields: Any) -> None:
        """Say more of the work before it ends."""
        self._fields.update(fields)

    def __enter__(self) -> Span:
        self.parent = _current.get()
        self._token = _current.set(self)
        self._began_s = time.monotonic()
        if _listeners:
            _tell(lambda listener: listener.began(self))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.duration_s = time.monotonic() - self._began_s
        self.error = error
        if _listeners:
            _tell(lambda listener: listener.ended(self))
        assert self._token is not None
        _current.reset(self._token)

    def __repr__(self) -> str:
        return f"<Span {self.name} {dict(self.fields)}>"


class Listener(Protocol):
    """Hears of spans and events, in the thread or task in which they happen: be quick, and do not block."""

    def began(self, span: Span) -> None:
        """A span began; its parent, if any, has not ended."""

    def ended(self, span: Span) -> None:
        """A span ended: its fields, duration and error are final."""

    def happened(self, name: str, fields: Mapping[str, Any]) -> None:
        """An event."""


_current: ContextVar[Span | None] = ContextVar("entitycelery_span", default=None)
_listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> Callable[[], None]:
    """Tell `listener` of every span and event of this process, and of processes forked from it, from now on.

    A listener that raises is logged; the work goes on.

    Returns:
        A function that ends it.
    """
    global _listeners
    _listeners = (*_listeners, listener)

    def stop() -> None:
        global _listeners
        _listeners = tuple(other for other in _listeners if other is not listener)

    return stop


def span(name: str, **fields: Any) -> Span:
    """A span, to be entered with `with`."""
    return Span(name, fields)


def happened(name: str, **fields: Any) -> None:
    """An event, at this moment."""
    if _listeners:
        _tell(lambda listener: listener.happened(name, fields))


def current_span() -> Span | None:
    """The innermost span of this thread or task."""
    return _current.get()


def _tell(call: Callable[[Listener], None]) -> None:
    for listener in _listeners:
        try:
            call(listener)
        except Exception:
            log.exception("a telemetry listener failed", extra={"listener": repr(listener)})
