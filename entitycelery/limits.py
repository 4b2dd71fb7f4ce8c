"""How large and how deep what is stored may be, and how it may be called. Whoever is about to store something asks."""

from __future__ import annotations

import sys

import msgspec

from entitycelery.exceptions import ConfigurationError

# An index row of PostgreSQL holds 2,704 bytes: a type's name of 200, the id, and what the row itself takes.
LARGEST_ID_BYTES = 2_400
# A value of a jsonb column ends at 256 MiB, and PostgreSQL's own parser, with the stack it is given, at some thousand
# levels; Python's ends before, at about a thousand.
LARGEST_PAYLOAD_BYTES = 64 * 1024 * 1024
DEEPEST_NESTING = 500
# What is stored in one transaction travels in one statement, whose text ends at 1 GiB and may be seven times as long.
MOST_BYTES_AT_ONCE = 128 * 1024 * 1024

_BRACKETS = bytes.maketrans(b"[{]}", b"(())")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one app; their settings are `entity_max_` and the name of the field."""

    payload_bytes: int = 1024 * 1024
    state_bytes: int = 16 * 1024 * 1024
    id_bytes: int = 1024
    nesting: int = 100

    def against_payload(self, data: bytes) -> str | None:
        """What is wrong with the JSON of a message's arguments or of a result; None: nothing."""
        if len(data) > self.payload_bytes:
            return _too_large(data, self.payload_bytes, "entity_max_payload_bytes")
        return self._against_nesting(data)

    def against_state(self, data: bytes) -> str | None:
        """What is wrong with the JSON of a state; None: nothing."""
        if len(data) > self.state_bytes:
            return _too_large(data, self.state_bytes, "entity_max_state_bytes")
        return self._against_nesting(data)

    def against_id(self, entity_id: str) -> str | None:
        """What is wrong with an entity's id; None: nothing."""
        # No character takes more than four bytes.
        if len(entity_id) * 4 <= self.id_bytes or (size := len(entity_id.encode())) <= self.id_bytes:
            return None
        allowed = f"entity_max_id_bytes allows {self.id_bytes:,}"
        return f"has an id of {size:,} bytes as UTF-8, {allowed}: {entity_id[:40]!r}..."

    def against_total(self, count: int, size: int) -> str | None:
        """What is wrong with so many messages, of so many bytes, in one transaction; None: nothing."""
        if size <= MOST_BYTES_AT_ONCE:
            return None
        return f"{count:,} messages in one transaction have {size:,} bytes, at most {MOST_BYTES_AT_ONCE:,} are possible"

    def _against_nesting(self, data: bytes) -> str | None:
        # Counting brackets costs a tenth of a microsecond and is enough for nearly all.
        if data.count(b"[") + data.count(b"{") <= self.nesting or not _is_deeper(data, self.nesting):
            return None
        return f"nested deeper than the {self.nesting} levels that entity_max_nesting allows"


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(payload_bytes=sys.maxsize, state_bytes=sys.maxsize, id_bytes=sys.maxsize, nesting=sys.maxsize)


def valid_name(what: str, name: object) -> str:
    """`name`, when what is called `what` can have it.

    Raises:
        ConfigurationError: It is no text of 1 to 200 printable characters.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise ConfigurationError(f"{what} has a name of 1 to 200 printable characters, got {name!r:.80}")
    return name


def _is_deeper(data: bytes, levels: int) -> bool:
    """Whether objects and lists are nested deeper in a JSON text."""
    # What is no string stands at every other place between quotes, once the escaped ones are gone.
    outside = data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    brackets = b"".join(outside).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(levels):
        if not brackets:
            return False
        # Takes away every innermost pair, so one level.
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def _too_large(data: bytes, most: int, setting: str) -> str:
    return f"{len(data):,} bytes as JSON, {setting} allows {most:,}"
