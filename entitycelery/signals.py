"""Signals of an entity: named events that complete once, and what the entity does then.

A pending signal is one row among the messages of its entity, due when it times out. Whoever completes it writes the
outcome into that row and makes it due at once, so that its row lock decides between completions and the time-out. A
completion that comes before anybody expects it stores a row of the same id, so that here too the first one wins.

What an entity expects is kept beside its state, under its version. A name can be expected again once it is over; the
number of the round is part of the row's id, and no round of a name has the number of another.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from entitycelery import codec
from entitycelery.exceptions import (
    ConfigurationError,
    MalformedMessage,
    SignalCancelled,
    SignalTimeout,
    StateConflict,
)
from entitycelery.message import Asked, Failure

SIGNAL = "entity.signal"
"""On the wire: the operation of such a row. No method can be called so, and no handler may."""
MOST_SIGNALS = 1_000
_MOST_ENDED = 100
# What never times out is due then: in 300 years.
NEVER_S = 1e10


class SignalOutcome(StrEnum):
    """What a completion came to.

    `completed`: what follows is on its way. `early`: nobody expects it yet, it waits. `over`: it was completed, timed
    out or withdrawn before. `noted`: it is part of the turn's commit, which finds out.
    """

    COMPLETED = "completed"
    EARLY = "early"
    OVER = "over"
    NOTED = "noted"


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a signal was completed: with a value, which is JSON, or with a failure."""

    status: Literal["succeeded", "failed", "cancelled"]
    value: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


class Continuations(msgspec.Struct, frozen=True, omit_defaults=True):
    """The operations that an entity goes on with."""

    then: str
    on_timeout: str | None = None
    on_failure: str | None = None

    def after(self, outcome: Outcome | None) -> str | None:
        """The one for this outcome, None being the time-out; None where there is none for it."""
        if outcome is None:
            return self.on_timeout
        return self.then if outcome.status == "succeeded" else self.on_failure


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """The row of a signal: what its arguments say. Without `continuations` it was completed before it was expected."""

    name: str
    number: int
    continuations: Continuations | None = None
    outcome: Outcome | None = None

    def why(self, address: str) -> Failure:
        """Why it did not succeed."""
        if self.outcome is not None and self.outcome.failure is not None:
            return self.outcome.failure
        if self.outcome is not None:
            return failure_of(SignalCancelled, f"the signal {self.name!r} of {address} was cancelled")
        return failure_of(SignalTimeout, f"the signal {self.name!r} of {address} was not completed in time")


class Expected(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an entity expects; `message_id` is the message with which it goes on, `completed` whether only that is
    missing, `asked` whom that answers."""

    message_id: str
    continuations: Continuations
    since_epoch_s: float
    expires_epoch_s: float | None = None
    completed: bool = False
    asked: tuple[Asked, ...] = ()


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The newest round of a name: expected, or completed before that, or, if neither, over."""

    number: int
    at_epoch_s: float
    expected: Expected | None = None
    early: Outcome | None = None

    @property
    def is_over(self) -> bool:
        return self.expected is None and self.early is None


class _Kept(msgspec.Struct, omit_defaults=True):
    """As it is stored. `base`: the number of a name's first round, behind those of all names that were forgotten.
    `held`: whom the entity will answer itself, by no signal."""

    entries: dict[str, Entry] = {}
    base: int = 0
    held: tuple[Asked, ...] = ()


_DECODER = msgspec.json.Decoder(_Kept)
_EVENT_DECODER = msgspec.json.Decoder(Event)


class Signals:
    """The signals of one entity while its turns run: what is expected, and which rows are not to come any more."""

    __slots__ = ("_kept", "_stored", "disarmed")

    def __init__(self, stored: str | None) -> None:
        """Make it.

        Raises:
            StateConflict: At first use: what is stored are no signals.
        """
        self._stored = stored
        self._kept: _Kept | None = _Kept() if stored is None else None
        self.disarmed: list[str] = []

    def _read(self) -> _Kept:
        if self._kept is None:
            try:
                self._kept = _DECODER.decode(self._stored or "")
            except codec.DECODING_ERRORS as exc:
                raise StateConflict(f"the stored signals of an entity cannot be read: {codec.said(exc)}") from exc
        return self._kept

    def entry(self, name: str) -> Entry | None:
        """The newest round of a name, if one is known."""
        return self._read().entries.get(name)

    def pending(self) -> list[tuple[str, Entry, Expected]]:
        """What is expected, by name, and not known to be completed."""
        return [one for one in self._expected() if not one[2].completed]

    def asked(self) -> set[Asked]:
        """Whom what is expected will answer, or the entity itself."""
        return {*self._read().held, *(one for _, _, expected in self._expected() for one in expected.asked)}

    @property
    def holds_answers(self) -> bool:
        """Whether somebody waits for an answer of the entity itself."""
        return bool(self._read().held)

    def hold(self, asked: tuple[Asked, ...]) -> None:
        """Leave the answer of these messages to a later turn."""
        self._read().held += asked

    def release(self) -> tuple[Asked, ...]:
        """Those whose answer was left to a later turn, for this one to answer."""
        kept = self._read()
        released, kept.held = kept.held, ()
        return released

    def _expected(self) -> list[tuple[str, Entry, Expected]]:
        entries = self._read().entries.items()
        return [(name, entry, entry.expected) for name, entry in entries if entry.expected is not None]

    # Rounds

    def current(self, name: str) -> int:
        """The round that a completion means which names none: the newest, or the first."""
        entry = self.entry(name)
        return self._read().base if entry is None else entry.number

    def coming(self, name: str) -> int:
        """The round that is expected, or will be next."""
        entry = self.entry(name)
        return self.current(name) + (1 if entry is not None and entry.is_over else 0)

    def can_be_completed(self, name: str, number: int) -> bool:
        """Whether that round of a name waits for its outcome, as far as is known here."""
        entry = self.entry(name)
        if entry is None or number != entry.number:
            return number == self.coming(name)
        return entry.expected is not None and not entry.expected.completed

    # Changes

    def expect(self, name: str, expected: Expected, number: int) -> None:
        """Expect a round of a name.

        Raises:
            ConfigurationError: There is no room for it.
        """
        entries = self._read().entries
        if name not in entries and sum(not entry.is_over for entry in entries.values()) >= MOST_SIGNALS:
            raise ConfigurationError(f"an entity expects at most {MOST_SIGNALS:,} signals, and {name!r} is one more")
        entries[name] = Entry(number, expected.since_epoch_s, expected)

    def keep_early(self, event: Event, at_epoch_s: float) -> None:
        """Keep an outcome until somebody expects it."""
        self._read().entries[event.name] = Entry(event.number, at_epoch_s, early=event.outcome)

    def expected_by(self, message_id: str) -> tuple[str, Expected] | None:
        """What the message goes on with, if it is a signal's."""
        if self._stored is None and not self._read().entries:
            return None
        found = ((name, one) for name, _, one in self._expected() if one.message_id == message_id)
        return next(found, None)

    def end(self, name: str, at_epoch_s: float) -> Expected:
        """The round is over, however its turn ended. Whom that answers nobody else does."""
        expected = self._over(name, at_epoch_s)
        answered = set(expected.asked)
        for other, entry in self._read().entries.items():
            if entry.expected is not None and not answered.isdisjoint(entry.expected.asked):
                self.answer_with(other, tuple(one for one in entry.expected.asked if one not in answered))
        return expected

    def withdraw(self, name: str, at_epoch_s: float) -> list[Asked]:
        """Expect a name no more, and keep no outcome for it; whom nobody will answer now."""
        entry = self.entry(name)
        if entry is None or entry.expected is None:
            if entry is not None:
                self._read().entries[name] = Entry(entry.number, at_epoch_s)
            return []
        withdrawn = self._over(name, at_epoch_s)
        self.disarmed.append(withdrawn.message_id)
        others = self.asked()
        return [one for one in withdrawn.asked if one not in others]

    def _over(self, name: str, at_epoch_s: float) -> Expected:
        kept = self._read()
        entry = kept.entries[name]
        assert entry.expected is not None
        kept.entries[name] = Entry(entry.number, at_epoch_s)
        over = sorted((one.at_epoch_s, other) for other, one in kept.entries.items() if one.is_over)
        for _, forgotten in over[: max(0, len(over) - _MOST_ENDED)]:
            # The id of a round is never used again.
            kept.base = max(kept.base, kept.entries.pop(forgotten).number + 1)
        return entry.expected

    def names(self) -> list[str]:
        """The names of all; of none where what is stored cannot be read, which is forgotten then."""
        try:
            return list(self._read().entries)
        except StateConflict:
            self._kept = _Kept()
            return []

    def is_expected(self, name: str) -> bool:
        entry = self.entry(name)
        return entry is not None and entry.expected is not None

    def answer_with(self, name: str, asked: tuple[Asked, ...]) -> None:
        """Have what is expected answer these messages."""
        entry = self._read().entries[name]
        assert entry.expected is not None
        expected = msgspec.structs.replace(entry.expected, asked=asked)
        self._read().entries[name] = msgspec.structs.replace(entry, expected=expected)

    def dump(self) -> str | None:
        """As they are stored; None where there never was one."""
        if self._kept is None:
            return self._stored
        if self._kept == _Kept():
            return None
        return msgspec.json.encode(self._kept).decode()


def event_from(args: str) -> Event:
    """The arguments of a signal's row.

    Raises:
        MalformedMessage: They are none.
    """
    try:
        return _EVENT_DECODER.decode(args)
    except codec.DECODING_ERRORS as exc:
        raise MalformedMessage(f"the row of a signal cannot be read: {codec.said(exc)}") from exc


def failure_of(cls: type[Exception], sentence: str) -> Failure:
    """A failure that nobody raised."""
    reason = getattr(cls, "reason", cls.__name__)
    return Failure(reason, f"{cls.__module__}:{cls.__qualname__}", sentence, [sentence])
