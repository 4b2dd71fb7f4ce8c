"""Exceptions on their way through the store: written down where a turn failed, raised again where it is awaited."""

from __future__ import annotations

import importlib
import traceback

import msgspec

from entitycelery.codec import ENCODING_ERRORS
from entitycelery.exceptions import EntityError, HandlerFailed, MessageCancelled, MessageExpired
from entitycelery.limits import DEFAULT_LIMITS
from entitycelery.message import Failure, Reply, Status

_MAX_TEXT = 16_000


class RemoteTraceback(Exception):
    """The traceback of a failed turn, as the cause of the exception raised in the asking process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def failure_from(exc: BaseException) -> Failure:
    """What is stored of an exception."""
    cls = type(exc)
    return Failure(
        reason=exc.reason if isinstance(exc, EntityError) else HandlerFailed.reason,
        type=f"{cls.__module__}:{cls.__qualname__}",
        message=_printable(_said(exc)),
        args=_plain_args(exc),
        traceback=_printable("".join(traceback.format_exception(exc))[-_MAX_TEXT:]),
    )


def exception_from(failure: Failure, *, address: str, message_id: str) -> BaseException:
    """The exception of a failed reply: the user's own class where it can be imported, else HandlerFailed."""
    cls = _importable(failure.type)
    error = _rebuilt(cls, failure, address, message_id) if cls else None
    if error is None:
        error = HandlerFailed(
            f"{failure.type.replace(':', '.')}: {failure.message}",
            exception_type=failure.type.replace(":", "."),
            remote_traceback=failure.traceback,
            address=address,
            message_id=message_id,
        )
    error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def result_of(reply: Reply) -> str:
    """The result of a reply as JSON.

    Raises:
        MessageExpired, MessageCancelled: It never ran.
        BaseException: What its handler raised.
    """
    who = {"address": str(reply.address), "message_id": reply.id}
    if reply.status is Status.DONE:
        return reply.result or "null"
    if reply.status is Status.EXPIRED:
        raise MessageExpired(f"{reply.address} {reply.operation}: the message expired before its turn", **who)
    if reply.status is Status.CANCELLED:
        raise MessageCancelled(f"{reply.address} {reply.operation}: the message was cancelled", **who)
    raise exception_from(reply.failure or Failure("HandlerFailed", "", "failed without a reason"), **who)


def _said(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as broken:  # noqa: BLE001 - a user's own __str__
        return f"<{type(exc).__name__} whose text failed: {type(broken).__name__}>"


def _printable(text: str) -> str:
    return text[:_MAX_TEXT].encode(errors="replace").decode().replace("\0", "\ufffd")


def _plain_args(exc: BaseException) -> list[object] | None:
    # Only arguments that JSON gives back as they were can rebuild the same exception.
    try:
        args = list(exc.args)
        encoded = msgspec.json.encode(args)
        if len(encoded) > _MAX_TEXT or b"\\u0000" in encoded or DEFAULT_LIMITS.against_payload(encoded):
            return None
        return args if msgspec.json.decode(encoded) == args else None
    except ENCODING_ERRORS:
        return None


def _importable(dotted: str) -> type[BaseException] | None:
    module_name, _, qualname = dotted.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _rebuilt(cls: type[BaseException], failure: Failure, address: str, message_id: str) -> BaseException | None:
    if failure.args is None:
        return None
    try:
        error = cls(*failure.args)
    except Exception:  # noqa: BLE001 - a user's own __init__, which may want anything
        return None
    if isinstance(error, EntityError):
        error.address, error.message_id = address, message_id
    return error
