"""Timers of an entity: named messages to itself that come later, once or again and again.

They are kept beside the entity's state, under its version, so that they change with its turns or not at all. For each
one that is set a delayed message is stored; the message whose id the timer names is the one that counts.
"""

from __future__ import annotations

import math

import msgspec

from entitycelery import codec
from entitycelery.exceptions import ConfigurationError, StateConflict

MOST_TIMERS = 1_000
SHORTEST_INTERVAL_S = 1.0


class Armed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A timer as it is stored: the message that fires it, what that calls, and when it is due."""

    message_id: str
    operation: str
    args: str
    due_epoch_s: float
    every_s: float | None = None

    def next_due_epoch_s(self, now_epoch_s: float) -> float | None:
        """When it is due again after it fired: the first of its moments behind now; None if it fires once.

        What was missed while nobody ran is made up for by the one firing that was late.
        """
        if self.every_s is None:
            return None
        missed = max(0, math.floor((now_epoch_s - self.due_epoch_s) / self.every_s))
        return self.due_epoch_s + (missed + 1) * self.every_s


_DECODER = msgspec.json.Decoder(dict[str, Armed])


class Timers:
    """The timers of one entity while its turns run: what was set, and which messages are not to come any more."""

    __slots__ = ("_armed", "_stored", "disarmed")

    def __init__(self, stored: str | None) -> None:
        """Make it.

        Raises:
            StateConflict: What is stored are no timers.
        """
        self._stored = stored
        self._armed: dict[str, Armed] | None = {} if stored is None else None
        self.disarmed: list[str] = []

    @property
    def armed(self) -> dict[str, Armed]:
        """Those that are set, by name."""
        if self._armed is None:
            try:
                self._armed = _DECODER.decode(self._stored or "")
            except codec.DECODING_ERRORS as exc:
                raise StateConflict(f"the stored timers of an entity cannot be read: {codec.said(exc)}") from exc
        return self._armed

    def name_of(self, message_id: str) -> str | None:
        """The timer that this message fires, if it is one's."""
        if self._stored is None and not self._armed:
            return None
        return next((name for name, armed in self.armed.items() if armed.message_id == message_id), None)

    def set(self, name: str, armed: Armed) -> None:
        """Set a timer, in the place of an earlier one of this name.

        Raises:
            ConfigurationError: The entity has too many.
        """
        self.cancel(name)
        if len(self.armed) >= MOST_TIMERS:
            raise ConfigurationError(
                f"an entity has at most {MOST_TIMERS:,} timers: cancel one before you set {name!r}"
            )
        self.armed[name] = armed

    def cancel(self, name: str) -> bool:
        """Cancel a timer; whether it was set."""
        armed = self.armed.pop(name, None)
        if armed is None:
            return False
        self.disarmed.append(armed.message_id)
        return True

    def fired(self, name: str) -> Armed:
        """Take a timer whose message has come; that message is at its end anyway."""
        return self.armed.pop(name)

    def names(self) -> list[str]:
        """The names of all; of none where what is stored cannot be read, which is forgotten then."""
        try:
            return list(self.armed)
        except StateConflict:
            self._armed = {}
            return []

    def dump(self) -> str | None:
        """As they are stored; None where there are none."""
        if self._armed is None:
            return self._stored
        return msgspec.json.encode(self._armed).decode() if self._armed else None


def checked_interval_s(every_s: float | None) -> float | None:
    """`every_s`, when it is long enough.

    Raises:
        ConfigurationError: It is shorter than a second.
    """
    if every_s is not None and every_s < SHORTEST_INTERVAL_S:
        raise ConfigurationError(f"every_s is at least {SHORTEST_INTERVAL_S:g}, got {every_s:g}")
    return every_s
