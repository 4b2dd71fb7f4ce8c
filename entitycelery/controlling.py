"""What is done through `entities` to messages that are stored already: cancelled, rescheduled, retried, discarded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from entitycelery.calls import Call, Sent
from entitycelery.client.control import filter_of
from entitycelery.exceptions import UnknownMessage
from entitycelery.message import Change, DeadLetter, DeadLetterFilter
from entitycelery.parts import Parts
from entitycelery.port import Port, current_port
from entitycelery.ref import address_of, kind_of
from entitycelery.reshard_plan import ReshardPlan

EVERYTHING = DeadLetterFilter()


class Controlling(ABC):
    """The part of `EntityCelery` that controls. A message is named by its id, by what `send` returned, or by a call
    with its key: `alice.deposit.options(key="order-17")`.

    But for `delete`, nothing here can be part of a turn: inside one it is a ConfigurationError.
    """

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    @abstractmethod
    def _composed(self) -> Parts:
        """The parts, whatever the store has."""

    def cancel(self, message: str | Sent[Any] | Call[..., Any]) -> Change:
        """End a pending message: whoever waits for it gets MessageCancelled, and its key stays used.

        A turn that is running loses against it: what the turn did is dropped. The outcome is `cancelled`, `finished`
        where the message had its end already, with the status of that, or `unknown`.
        """
        return self._ready().control.cancel(message)

    def reschedule(
        self,
        message: str | Sent[Any] | Call[..., Any],
        *,
        delay_s: float | timedelta | None = None,
        deliver_at: datetime | None = None,
    ) -> Change:
        """Give a pending message another due time: so many seconds from now, or an aware instant.

        A turn that is running loses against it, and the message is handled at its new time. The outcome is
        `rescheduled`, `finished` with the status of that end, or `unknown`.
        """
        return self._ready().control.reschedule(message, delay_s, deliver_at)

    def delete(self, ref: object) -> Sent[None]:
        """Send an entity the message that ends it: its state goes, in its turn, as by `self.turn.delete()`.

        Messages sent before it are handled before it; one sent later finds a new entity. A state that the code cannot
        load any more is deleted too. Inside a turn this is part of the turn's commit, as every send.

        Raises:
            MailboxFull, SendTimeout: As `send`.
        """
        kind = kind_of(ref)
        call: Call[[], None] = Call(kind.deletion, address_of(ref), self._current_port, kind.mailbox_capacity)
        return call.send()

    def dead_letters(
        self, wanted: DeadLetterFilter = EVERYTHING, *, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """Dead letters in the order of sending, from behind the letter whose `seq` is `after`."""
        return self._ready().control.dead_letters(wanted, after, limit)

    def dead_letter(self, message_id: str) -> DeadLetter:
        """One dead letter.

        Raises:
            UnknownMessage: There is none of this id.
        """
        found = self.dead_letters(filter_of(message_id), limit=1)
        if not found:
            raise UnknownMessage(f"there is no dead letter {message_id}", message_id=message_id)
        return found[0]

    def dead_letter_ids(self, wanted: DeadLetterFilter | str | Sequence[str]) -> list[str]:
        """The ids of all dead letters that fit a filter, or of those among the given ids."""
        return self._ready().control.dead_letter_ids(filter_of(wanted))

    def retry_dead(self, wanted: DeadLetterFilter | str | Sequence[str]) -> list[str]:
        """Make dead letters pending messages again, behind all mail that waits; the ids of those that were there.

        They keep their ids and keys, and their attempts count anew.
        """
        return self._ready().control.retry_dead(filter_of(wanted))

    def discard_dead(self, wanted: DeadLetterFilter | str | Sequence[str]) -> list[str]:
        """Delete dead letters; the ids of those that were there. Their replies stay for the retention time."""
        return self._ready().control.discard_dead(filter_of(wanted))

    def plan_reshard(self, shards_per_group: int) -> ReshardPlan:
        """What `reshard` would do now; nothing is changed."""
        return self._composed().resharder.plan(shards_per_group)

    def reshard(self, shards_per_group: int) -> ReshardPlan:
        """Change the number of shards in each group, with all pending messages and dead letters, while no worker
        hosts entities; what was done.

        Processes that send need not stop. Doing it again finishes what the broker did not allow the first time.

        Raises:
            ConfigurationError: Workers host entities, or it is no number of shards.
            TransportFailed: The store is done and the broker is not.
        """
        parts = self._composed()
        # A wake-up that came later would leave a queue of the old number behind.
        parts.host.bell.flush()
        return parts.resharder.reshard(shards_per_group)

    def _current_port(self) -> Port:
        return current_port.get() or self._ready().client
