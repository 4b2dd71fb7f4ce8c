"""Tokens of signals: what outsiders complete a signal with.

A token says which signal is meant and proves, by a keyed hash (HMAC-SHA256, RFC 2104, cut to 128 bits) with the
cluster's secret, that the cluster made it. So nothing is stored for it, nobody can guess one, and one of another
cluster means nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from entitycelery.address import Address, quoted
from entitycelery.exceptions import UnknownSignal

_MAC_BYTES = 16
_LONGEST = 8_192


class SignalId(NamedTuple):
    """One round of a named signal of an entity or a workflow."""

    address: Address
    name: str
    number: int


_DECODER = msgspec.json.Decoder(tuple[str, str, str, int])


class SignalTokens:
    """Makes and reads the tokens of one cluster."""

    def __init__(self, cluster: str, secret: Callable[[], bytes]) -> None:
        """Make it; `secret` is asked for at first use."""
        self._head = f"entitycelery signal {cluster} ".encode()
        self._source = secret
        self._secret: bytes | None = None

    def make(self, signal: SignalId) -> str:
        """The token: letters, digits, `_`, `-` and one dot."""
        payload = msgspec.json.encode((*signal.address, signal.name, signal.number))
        return f"{_encoded(payload)}.{_encoded(self._mac(payload))}"

    def read(self, token: str) -> SignalId:
        """The signal of a token.

        Raises:
            UnknownSignal: It is no token of this cluster.
        """
        payload, mac = _parts(token)
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise _unknown(token)
        type_name, entity_id, name, number = _DECODER.decode(payload)
        return SignalId(Address(type_name, entity_id), name, number)

    def _mac(self, payload: bytes) -> bytes:
        if self._secret is None:
            self._secret = self._source()
        return hmac.new(self._secret, self._head + payload, hashlib.sha256).digest()[:_MAC_BYTES]


def _parts(token: str) -> tuple[bytes, bytes]:
    head, dot, tail = token.partition(".")
    if not dot or not token.isascii() or len(token) > _LONGEST:
        raise _unknown(token)
    try:
        return _decoded(head), _decoded(tail)
    except (binascii.Error, ValueError) as exc:
        raise _unknown(token) from exc


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    # One spelling for each token: the unused bits of the last letter do not count.
    if _encoded(data) != text:
        raise ValueError(text)
    return data


def _unknown(token: str) -> UnknownSignal:
    return UnknownSignal(f"{quoted(token)} is no signal's token of this cluster")
