"""What becomes of sends with `unique`: decided from what is known of their key while its row is locked.

    rule       a message of the key waits           one runs                      none is pending
    reject     refused                              refused                       stored
    replace    takes the place of its arguments     the same: its turn loses      stored
    queue      takes the place of its arguments     stored behind it              stored
    debounce   the same, and puts it off            stored, to wait for its own   stored, to wait

While `unique_for_s` of an earlier message is not over, `reject` refuses, and what is stored is due when it is.
"""

from __future__ import annotations

import msgspec

from entitycelery.message import Appended, AppendOutcome, NewMessage

DEBOUNCE_DELAYS_AT_MOST = 10
"""A stream of sends puts a message off for so many times its delay and no longer."""


class Holder(msgspec.Struct, frozen=True):
    """A pending message of a key; instants are seconds since the epoch.

    `retrying`: it has failed, and waits for its retry. `running`: a drain is about to run it, or does.
    """

    id: str
    sent_epoch_s: float
    due_epoch_s: float | None = None
    expires_epoch_s: float | None = None
    retrying: bool = False
    running: bool = False


class Window(msgspec.Struct, frozen=True):
    """The time for which a key is taken whatever becomes of its message; it begins when the one before it is over."""

    message_id: str | None
    begin_epoch_s: float
    end_epoch_s: float


class Change(msgspec.Struct, frozen=True):
    """What a pending message gets of one that joined it."""

    joined: NewMessage
    due_epoch_s: float | None
    expires_epoch_s: float | None


class Key:
    """One key while the sends of one transaction are decided, one after the other."""

    def __init__(self, now_epoch_s: float, holders: list[Holder], window: Window) -> None:
        """Make it; `holders` are in the order in which they were sent."""
        self._now_s = now_epoch_s
        self._holders = holders
        self.window = window
        self.stored: dict[str, NewMessage] = {}
        self.changed: dict[str, Change] = {}

    def decide(self, message: NewMessage) -> Appended:
        """What becomes of a message: STORED, JOINED or TAKEN."""
        assert message.unique is not None
        if message.unique.rule == "reject":
            holder_id = self._holders[-1].id if self._holders else self.window.message_id
            if self._holders or self._is_within_window():
                return Appended(AppendOutcome.TAKEN, holder_id or message.id)
        elif (holder := self._joinable(message)) is not None:
            self._join(holder, message)
            return Appended(AppendOutcome.JOINED, holder.id)
        self._store(message)
        return Appended(AppendOutcome.STORED, message.id)

    def _is_within_window(self) -> bool:
        return self.window.end_epoch_s > self._now_s

    def _joinable(self, message: NewMessage) -> Holder | None:
        # What runs has begun before this send: only `replace` wants it to lose for that.
        replaces = message.unique is not None and message.unique.rule == "replace"
        return next((one for one in reversed(self._holders) if replaces or not one.running), None)

    def _join(self, holder: Holder, message: NewMessage) -> None:
        due = self._due_of_both(holder, message)
        expires = self._expiry(message)
        if message.unique is not None and message.unique.rule == "queue":
            # Both senders count on this turn; the others take the place of the earlier ones.
            before = holder.expires_epoch_s
            expires = None if expires is None or before is None else max(expires, before)
        after = msgspec.structs.replace(holder, due_epoch_s=due, expires_epoch_s=expires)
        self._holders[self._holders.index(holder)] = after
        if holder.id in self.stored:
            self.stored[holder.id] = self._merged(self.stored[holder.id], message, after)
        else:
            self.changed[holder.id] = Change(message, due, expires)

    def _due_of_both(self, holder: Holder, message: NewMessage) -> float | None:
        due = given = self._due(message)
        rule = message.unique.rule if message.unique else None
        if given is None:
            return holder.due_epoch_s
        if rule == "debounce":
            longest_s = DEBOUNCE_DELAYS_AT_MOST * (message.delay_s or 0.0)
            given = max(self._now_s, min(given, holder.sent_epoch_s + longest_s))
        if rule == "queue" or (rule == "debounce" and holder.retrying):
            # Neither sender wants it earlier, and no send hastens a retry.
            due = max(given, holder.due_epoch_s or given)
        else:
            due = given
        if holder.id == self.window.message_id:
            # It waits for the window before its own.
            due = max(due, self.window.begin_epoch_s)
        return due

    def _store(self, message: NewMessage) -> None:
        due = self._due(message)
        begin_s = self._now_s
        # Whether it is there is known: nobody else has this id.
        stored = msgspec.structs.replace(message, keyed=False)
        if self._is_within_window():
            begin_s = self.window.end_epoch_s
            if due is None or due < begin_s:
                due = begin_s
                stored = msgspec.structs.replace(stored, delay_s=None, deliver_at_epoch_s=due)
        for_s = message.unique.for_s if message.unique else None
        if for_s or self._is_within_window():
            self.window = Window(message.id, begin_s, begin_s + (for_s or 0.0))
        self.stored[message.id] = stored
        self._holders.append(Holder(message.id, self._now_s, due, self._expiry(message)))

    def _merged(self, stored: NewMessage, message: NewMessage, holder: Holder) -> NewMessage:
        """A message that is about to be stored, with what it gets of one that joined it."""
        return msgspec.structs.replace(
            stored,
            args=message.args,
            sender=message.sender,
            reply_to=stored.reply_to or message.reply_to,
            delay_s=None,
            deliver_at_epoch_s=holder.due_epoch_s,
            expires_s=None,
            expires_at_epoch_s=holder.expires_epoch_s,
        )

    def _due(self, message: NewMessage) -> float | None:
        if message.deliver_at_epoch_s is not None or message.delay_s is None:
            return message.deliver_at_epoch_s
        return self._now_s + message.delay_s

    def _expiry(self, message: NewMessage) -> float | None:
        if message.expires_at_epoch_s is not None or message.expires_s is None:
            return message.expires_at_epoch_s
        return self._now_s + message.expires_s
