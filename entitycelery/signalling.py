"""Signals through `entities`: completing them, their tokens, and what is expected."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from entitycelery import codec
from entitycelery.address import Address, parse_address
from entitycelery.effects import Complete
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import ConfigurationError, MalformedMessage, SignalFailed
from entitycelery.failures import failure_from
from entitycelery.limits import valid_name
from entitycelery.message import PendingSignal
from entitycelery.parts import Parts
from entitycelery.port import Port
from entitycelery.ref import address_of
from entitycelery.signal_token import SignalId
from entitycelery.signals import (
    NEVER_S,
    Expected,
    Outcome,
    SignalOutcome,
    Signals,
    event_from,
    failure_of,
)
from entitycelery.storage.port import WaitingSignal

log = logging.getLogger("entitycelery.signals")


class Signal:
    """One signal, to be completed once: the first completion wins, and later ones are told that it is over.

    Inside a turn a completion is part of the turn's commit, and tells nothing but that it is noted.
    """

    def __init__(self, port: Port, kind: EntityType, address: Address, name: str, number: int | None) -> None:
        self._port = port
        self._kind = kind
        self._number = number
        self.address = address
        self.name = name

    def succeed(self, value: object = None) -> SignalOutcome:
        """Complete it with a value, which must fit the annotation of the handler that is expecting it.

        Raises:
            MalformedMessage: The value does not fit; the signal waits on.
            SerializationFailed: It cannot be written as JSON.
            SendTimeout: It could not be stored in time; it can be tried again without harm.
        """
        data = codec.to_canonical_json(value, f"the value of the signal {self.name!r}")
        return self._complete(Outcome("succeeded", msgspec.Raw(data)))

    def fail(self, error: BaseException | str) -> SignalOutcome:
        """Complete it with an error: `on_failure` gets it, or it is a dead letter."""
        is_text = isinstance(error, str)
        failure = failure_of(SignalFailed, str(error)) if is_text else failure_from(error)  # type: ignore[arg-type]
        return self._complete(Outcome("failed", failure=failure))

    def cancel(self) -> SignalOutcome:
        """Complete it with SignalCancelled, as an error."""
        return self._complete(Outcome("cancelled"))

    def _complete(self, outcome: Outcome) -> SignalOutcome:
        signals = self._port.signals(self.address)
        number = signals.current(self.name) if self._number is None else self._number
        if not signals.can_be_completed(self.name, number):
            return SignalOutcome.OVER
        entry = signals.entry(self.name)
        if entry is not None and entry.number == number and entry.expected is not None:
            self._check(entry.expected, outcome)
        return self._port.complete(Complete(SignalId(self.address, self.name, number), outcome))

    def _check(self, expected: Expected, outcome: Outcome) -> None:
        # Whoever completes it hears of a misfit, not an operator later on.
        operation = self._kind.operations.get(expected.continuations.then)
        if outcome.status == "succeeded" and operation is not None:
            operation.decode(operation.continued_with(outcome.value))

    def __repr__(self) -> str:
        return f"<Signal {self.name!r} of {self.address}>"


class Signalling(ABC):
    """The part of `EntityCelery` that signals."""

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    @abstractmethod
    def _current_port(self) -> Port:
        """The turn that is running here, or else the client."""

    def signal(self, target: Any, name: str | None = None) -> Signal:
        """The signal of a token; or the one of this name of an entity, given by its reference or as `Type/id`.

        By name it is the round that is expected, or the latest that was. A name that nobody has ever expected can be
        completed early: the outcome waits.

        Raises:
            UnknownSignal: The text is no token of this cluster.
            ConfigurationError: It is neither, or the name is no signal's.
            UnknownEntityType: The type is not registered here.
        """
        registry, port = self._ready().registry, self._current_port()
        if name is not None:
            address = parse_address(target) if isinstance(target, str) else address_of(target)
            kind = registry.get(address.type)
            return Signal(port, kind, Address(kind.name, address.id), valid_name("a signal", name), None)
        if not isinstance(target, str):
            raise ConfigurationError(f"signal(...) takes a token, or an entity and the signal's name; got {target!r}")
        address, name, number = self._ready().host.tokens.read(target)
        return Signal(port, registry.get(address.type), address, name, number)

    def signal_token(self, ref: object, name: str) -> str:
        """A token for a signal of an entity, whether it is expected by now or will be next."""
        parts, address = self._ready(), address_of(ref)
        number = self._current_port().signals(address).coming(valid_name("a signal", name))
        return parts.host.tokens.make(SignalId(address, name, number))

    def signals(self, ref: object = None, *, after: str | None = None, limit: int = 100) -> list[PendingSignal]:
        """Signals that wait to be completed, in order of address, from behind the entity `after`; of one entity where
        `ref` is given, and only so surely all of an entity at which the limit ends a list.

        A row that cannot be read is logged and left out.
        """
        parts = self._ready()
        address = None if ref is None else address_of(ref)
        start = parse_address(after) if after else None
        asked = limit
        while True:
            rows = parts.store.waiting_signals(address, start, asked)
            found, unreadable = _read(parts, rows)
            if len(found) >= limit or len(rows) < asked:
                break
            # Others take the places of what was left out: a list that is shorter than its limit is the whole.
            asked += limit - len(found)
        for left_out, exc in unreadable:
            log.warning("a signal of %s is left out: %s", left_out, exc, extra={"address": str(left_out)})
        return found


def pending_signals(parts: Parts, address: Address, signals: Signals) -> tuple[PendingSignal, ...]:
    """What an entity expects, as it is kept beside its state."""
    return tuple(
        PendingSignal(
            address,
            name,
            expected.since_epoch_s,
            expected.expires_epoch_s,
            expected.continuations.then,
            parts.host.tokens.make(SignalId(address, name, entry.number)),
        )
        for name, entry, expected in signals.pending()
    )


def _read(
    parts: Parts, rows: Sequence[WaitingSignal]
) -> tuple[list[PendingSignal], list[tuple[Address, MalformedMessage]]]:
    found: list[PendingSignal] = []
    unreadable: list[tuple[Address, MalformedMessage]] = []
    for row in rows:
        try:
            found.append(_pending(parts, row))
        except MalformedMessage as exc:
            unreadable.append((row.address, exc))
    return found, unreadable


def _pending(parts: Parts, row: WaitingSignal) -> PendingSignal:
    event = event_from(row.args)
    token = parts.host.tokens.make(SignalId(row.address, event.name, event.number))
    then = event.continuations.then if event.continuations is not None else ""
    expires = row.due_at_epoch_s if row.due_at_epoch_s - row.sent_at_epoch_s < NEVER_S / 2 else None
    return PendingSignal(row.address, event.name, row.sent_at_epoch_s, expires, then, token)
