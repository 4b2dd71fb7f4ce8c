"""The JSON of a failure in the tables `message`, `reply` and `dead_letter`."""

from __future__ import annotations

import msgspec

from entitycelery.exceptions import SerializationFailed
from entitycelery.message import Failure

# A text that is no UTF-8, or nested deeper than the stack, is no error of msgspec's.
_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


def failure_json(failure: Failure | None) -> str | None:
    """A failure as it is stored. PostgreSQL's jsonb takes no NUL, which a traceback might quote."""
    if failure is None:
        return None
    return msgspec.json.encode(failure).replace(b"\\u0000", b"\\ufffd").decode()


def failure_of_json(text: str | bytes) -> Failure:
    """A failure as it was stored; one that nobody can read is a failure of its own, which says so.

    It must not raise: many replies are read at once, and those who wait for the others get theirs.
    """
    try:
        return msgspec.json.decode(text, type=Failure)
    except _UNREADABLE as exc:
        return unreadable(f"the stored failure cannot be read: {exc}")


def unreadable(sentence: str) -> Failure:
    """What stands in for a row that was not written by this library."""
    error = SerializationFailed
    return Failure(error.reason, f"{error.__module__}:{error.__qualname__}", sentence, [sentence])
