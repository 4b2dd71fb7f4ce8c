"""The firing of a timer: its message has come, so it is set no more, or for its next moment, however the turn ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from entitycelery.address import Address, ShardId, fingerprint, new_message_id
from entitycelery.exceptions import StateConflict
from entitycelery.message import Ended, Mail, NewMessage
from entitycelery.runtime.continuing import concluded
from entitycelery.runtime.turn import Snapshot, Step
from entitycelery.timers import Armed, Timers

log = logging.getLogger("entitycelery.drain")


class Firing:
    """What is known of the timers of one claimed entity, and of the database's clock since the claim."""

    __slots__ = ("_address", "_lock_key", "_monotonic_s", "_shard_of", "_since_s")

    def __init__(
        self,
        address: Address,
        lock_key: int,
        shard_of: Callable[[Address], ShardId],
        claimed_since_s: float,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it; `claimed_since_s` is the local monotonic moment before the claim began."""
        self._address = address
        self._lock_key = lock_key
        self._shard_of = shard_of
        self._since_s = claimed_since_s
        self._monotonic_s = monotonic_s

    def now_epoch_s(self, mail: Mail) -> float:
        """The database's present moment, or shortly after it: what is due then is never early."""
        return mail.read_at_epoch_s + (self._monotonic_s() - self._since_s)

    def begin(self, timers: Timers, mail: Mail) -> tuple[str | None, NewMessage | None]:
        """Take the timer that this mail fires, if it is one's; its name, and the message of its next moment."""
        name = timers.name_of(mail.id)
        if name is None:
            return None, None
        fired = timers.fired(name)
        due_epoch_s = fired.next_due_epoch_s(self.now_epoch_s(mail))
        if due_epoch_s is None:
            return name, None
        message = self.message(fired.operation, fired.args, due_epoch_s)
        timers.set(name, msgspec.structs.replace(fired, message_id=message.id, due_epoch_s=due_epoch_s))
        return name, message

    def conclude(self, step: Step, before: Snapshot) -> Step:
        """The step of a turn that left nothing, with what the firing of its timer, or the end of its signal, leaves all
        the same."""
        try:
            step = concluded(step, before, self.now_epoch_s(step.turn.mail))
        except StateConflict:
            log.exception("the signals of %s cannot be read", self._address)
        return self._conclude_timer(step, before)

    def _conclude_timer(self, step: Step, before: Snapshot) -> Step:
        if before.timers is None or not isinstance(step.turn, Ended):
            return step
        timers = Timers(before.timers)
        try:
            name, again = self.begin(timers, step.turn.mail)
        except StateConflict:
            log.exception("the timers of %s cannot be read", self._address)
            return step
        if name is None:
            return step
        ended = msgspec.structs.replace(step.turn, outgoing=() if again is None else (again,))
        after = msgspec.structs.replace(step.after, timers=timers.dump())
        return Step(ended, after, step.expected)

    def message(self, operation: str, args: str, due_epoch_s: float) -> NewMessage:
        """The message that fires a timer."""
        return NewMessage(
            id=new_message_id(),
            fingerprint=fingerprint(self._address, operation, args.encode()),
            shard=self._shard_of(self._address),
            address=self._address,
            lock_key=self._lock_key,
            operation=operation,
            args=args,
            sender=str(self._address),
            deliver_at_epoch_s=due_epoch_s,
        )

    def armed(self, message: NewMessage, due_epoch_s: float, every_s: float | None) -> Armed:
        return Armed(message.id, message.operation, message.args, due_epoch_s, every_s)
