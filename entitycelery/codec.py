"""JSON in and out: canonical arguments, results and states, with errors that name the place.

Built on msgspec. JSON columns of the store are `jsonb`, which refuses NUL characters, so they are refused here; NaN
and the infinities, which msgspec would write as null without a word, are refused too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from entitycelery.exceptions import SerializationFailed

# Sorted keys make equal arguments equal bytes, which is what a fingerprint compares.
_canonical = msgspec.json.Encoder(order="sorted")
_plain = msgspec.json.Encoder()
# MessagePack keeps the floats that JSON has no word for, so it tells fast that there is none; the standard library's
# encoder says exactly, and is ten times as slow.
_packed = msgspec.msgpack.Encoder()
_PACKED_INFINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_finite = json.JSONEncoder(allow_nan=False)
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BACKSLASH = ord("\\")
_MAYBE_NUL = rb"\u0000"
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_PATH = re.compile(r" - at `\$(?:\.(\w+))?([^`]*)`$")

ENCODING_ERRORS = (
    TypeError,
    ValueError,
    OverflowError,
    UnicodeEncodeError,
    RecursionError,
    msgspec.MsgspecError,
)

# A text that is no UTF-8, or nested deeper than the stack, is no ValidationError of msgspec's.
DECODING_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)


def to_json(value: object, what: str) -> bytes:
    """`value` as JSON.

    Raises:
        SerializationFailed: It cannot be written; the sentence begins with `what`.
    """
    return _encode(_plain, value, what)


def to_canonical_json(value: object, what: str) -> bytes:
    """`value` as JSON with sorted keys: equal values give equal bytes."""
    return _encode(_canonical, value, what)


def _encode(encoder: msgspec.json.Encoder, value: object, what: str) -> bytes:
    try:
        data = encoder.encode(value)
        if value is not None and b"null" in data:
            _refuse_infinite(value)
    except ENCODING_ERRORS as exc:
        raise SerializationFailed(f"{what} cannot be written as JSON: {said(exc)}") from exc
    # One byte is looked for eight times as fast as a word.
    if _BACKSLASH in data and _MAYBE_NUL in data and _ESCAPED_NUL.search(data):
        raise SerializationFailed(f"{what} contains a NUL character, which the store cannot keep")
    return data


def _refuse_infinite(value: object) -> None:
    try:
        if not _PACKED_INFINITE.search(_packed.encode(value)):
            return
    except OverflowError:
        pass  # an integer of more than 64 bits, which JSON can carry
    builtins = msgspec.to_builtins(value, enc_hook=lambda raw: None)
    try:
        _finite.encode(builtins)
    except ValueError:
        raise ValueError("it contains NaN or an infinity, for which JSON has no word") from None


def said(error: Exception) -> str:
    """What an error of writing or reading JSON says, for people."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or contains itself"
    return str(error)


def from_json(data: bytes | str) -> Any:
    """The plain value of a JSON text that this library wrote."""
    return msgspec.json.decode(data)


def raw_fields(data: bytes | str) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, their values left as they are written."""
    return _raw_object.decode(data)


def readable(value: object) -> str:
    """`value` as JSON for people."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


def place_of(error: msgspec.ValidationError) -> tuple[str | None, str]:
    """The top-level field that a validation error is about, and the sentence without its path."""
    text = str(error)
    match = _PATH.search(text)
    if match:
        field, rest = match.groups()
        where = f" (at {field}{rest})" if field and rest else ""
        return field, text[: match.start()] + where
    missing = re.search(r"(?:field `|Object missing required field `)(\w+)`", text)
    return (missing.group(1) if missing else None), text


def merged(fields: bytes, extra: Mapping[str, msgspec.Raw]) -> bytes:
    """The JSON object `fields` with the raw members of `extra` added."""
    if not extra:
        return fields
    tail = _plain.encode(extra)
    return tail if fields == b"{}" else fields[:-1] + b"," + tail[1:]
