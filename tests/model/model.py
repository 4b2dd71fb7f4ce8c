"""What ought to be: plain dictionaries, and the promises as asserts on whatever drains did.

Drains are free in which entity they serve first. So the model follows their events and says of each what had to come of
it. Time is whole hours.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field

from tests.model.entities import (
    CAPACITY,
    MAX_CRASHES,
    MAX_RETRIES,
    Book,
    Close,
    Delete,
    Fail,
    Flaky,
    Forward,
    Note,
    Send,
)
from tests.model.witness import Claimed, Committed, Counted, EntityTurns, Event, Noted, Released, Turn


@dataclass
class Message:
    """A message that is stored and not over."""

    id: str
    send: Send
    seq: int
    rev: int = 0
    attempt: int = 0
    crashes: int = 0
    due_h: int | None = None
    expires_h: int | None = None
    is_blocking: bool = False


@dataclass
class Answer:
    """How a message ended."""

    send: Send
    status: str
    result: str | None
    reason: str | None
    finished_h: int


@dataclass
class Entity:
    version: int = 0
    log: list[str] | None = None


@dataclass
class Claim:
    """An entity that a drain holds, or believes to hold, and the mail it has read of it."""

    mail: list[str]
    expired: set[str]
    is_held: bool = True


@dataclass
class Model:
    """Everything that is stored."""

    now_h: int = 0
    seq: int = 0
    messages: dict[str, Message] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    entities: dict[str, Entity] = field(default_factory=dict)
    keys: dict[tuple[str, str, str], str] = field(default_factory=dict)
    booked: list[str] = field(default_factory=list)
    dead_letters: set[str] = field(default_factory=set)
    notes: dict[str, set[str]] = field(default_factory=dict)
    claims: dict[tuple[str, str], Claim] = field(default_factory=dict)

    # Sends

    def becomes_of(self, send: Send) -> str:
        """What a send comes to: stored, duplicate, or the reason of its refusal."""
        known = None if send.key is None else self.keys.get((send.to, send.operation, send.key))
        if known is not None:
            first = self.messages[known].send if known in self.messages else self.answers[known].send
            return "duplicate" if first.call == send.call else "KeyConflict"
        pending = [m for m in self.messages.values() if m.send.to == send.to]
        return "MailboxFull" if send.to.startswith("Tight/") and len(pending) >= CAPACITY else "stored"

    def sent(self, send: Send, message_id: str) -> None:
        """A send returned this id."""
        outcome = self.becomes_of(send)
        if outcome == "duplicate":
            assert self.keys[send.to, send.operation, str(send.key)] == message_id, "the same key is the same message"
            return
        assert outcome == "stored", f"{send} was stored, but should have been refused: {outcome}"
        assert message_id not in self.messages, f"{send} got the id of another message"
        assert message_id not in self.answers, f"{send} got the id of another message"
        self.seq += 1
        self.messages[message_id] = Message(
            message_id,
            send,
            self.seq,
            due_h=None if send.due_in_h is None else self.now_h + send.due_in_h,
            expires_h=None if send.expires_in_h is None else self.now_h + send.expires_in_h,
        )
        if send.key is not None:
            self.keys[send.to, send.operation, send.key] = message_id

    def becomes_of_all(self, sends: list[Send]) -> set[str]:
        """The reasons for which a transaction of these sends may be refused; none: it is stored."""
        trial = copy.deepcopy(self)
        refusals = set()
        for number, send in enumerate(sends):
            outcome = trial.becomes_of(send)
            if outcome == "stored":
                trial.sent(send, f"new {number}")
            elif outcome != "duplicate":
                refusals.add(outcome)
        return refusals

    def purged(self, older_than_h: int) -> None:
        """Old replies were forgotten, and with them their keys; those of dead letters are kept."""
        for message_id, answer in list(self.answers.items()):
            if self.now_h - answer.finished_h >= older_than_h and message_id not in self.dead_letters:
                del self.answers[message_id]
        known = self.messages.keys() | self.answers.keys()
        self.keys = {key: message_id for key, message_id in self.keys.items() if message_id in known}

    # Changes from outside

    def cancelled(self, message_id: str) -> str:
        """What a cancel comes to; a cancelled message has its answer at once."""
        message = self.messages.pop(message_id, None)
        if message is None:
            return self.became_of(message_id)
        self.answers[message_id] = Answer(message.send, "cancelled", None, None, self.now_h)
        return "cancelled"

    def rescheduled(self, message_id: str, due_in_h: int) -> str:
        """What a reschedule comes to."""
        message = self.messages.get(message_id)
        if message is None:
            return self.became_of(message_id)
        message.due_h = self.now_h + due_in_h
        message.rev += 1
        return "rescheduled"

    def became_of(self, message_id: str) -> str:
        return "finished" if message_id in self.answers else "unknown"

    def dead_letter_retried(self, message_id: str) -> list[str]:
        """Which letters are messages again, as if never tried, behind all others."""
        if message_id not in self.dead_letters:
            return []
        self.dead_letters.remove(message_id)
        self.seq += 1
        self.messages[message_id] = Message(message_id, self.answers.pop(message_id).send, self.seq)
        return [message_id]

    def dead_letter_discarded(self, message_id: str) -> list[str]:
        if message_id not in self.dead_letters:
            return []
        self.dead_letters.remove(message_id)
        return [message_id]

    # What can run

    def is_runnable(self, message: Message) -> bool:
        if message.due_h is not None and message.due_h > self.now_h:
            return False
        return not any(
            other.is_blocking and other.send.to == message.send.to and other is not message
            for other in self.messages.values()
        )

    def left_over(self) -> list[Message]:
        """Runnable messages of entities that nobody holds."""
        held = {address for (_, address), claim in self.claims.items() if claim.is_held}
        return [m for m in self.messages.values() if m.send.to not in held and self.is_runnable(m)]

    # What drains did

    def follow(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Claimed():
                    self._claimed(event)
                case Counted():
                    self._counted(event)
                case Committed():
                    for entity in event.entities:
                        self._committed(event.drain, entity)
                case Noted(drain, None):
                    self.notes.pop(drain, None)
                case Noted(drain, ids):
                    self.notes[drain] = set(ids or ())
                case Released(drain, addresses):
                    for key in [k for k in self.claims if k[0] == drain and (addresses is None or k[1] in addresses)]:
                        del self.claims[key]

    def died(self, drain: str) -> None:
        """A drain's process is gone, and its claims with it; its note stays."""
        for key in [key for key in self.claims if key[0] == drain]:
            del self.claims[key]

    def lost_claims(self, drain: str) -> None:
        """A drain lost its claims and does not know it."""
        for (holder, _), claim in self.claims.items():
            claim.is_held = claim.is_held and holder != drain

    def _claimed(self, event: Claimed) -> None:
        mail_of: dict[str, list[str]] = {}
        for mail in event.mail:
            address = str(mail.address)
            message = self.messages.get(mail.id)
            assert message is not None, f"{mail.id} is over and was claimed again"
            assert message.send.to == address
            assert self.is_runnable(message), f"{message} was claimed, but cannot run yet"
            read = (mail.rev, mail.attempt, mail.crashes, mail.expired)
            assert read == (message.rev, message.attempt, message.crashes, self._is_expired(message)), f"{message}"
            notes = [drain for drain, ids in self.notes.items() if mail.id in ids and drain != event.drain]
            assert not notes, f"{notes} lost {message} while it may have run, and nobody counted it"
            mail_of.setdefault(address, []).append(mail.id)
        if any(mail.crashes for mail in event.mail):
            assert len(event.mail) == 1, "a message that may have killed its process runs alone"
        for address, ids in mail_of.items():
            for (drain, other), claim in self.claims.items():
                assert other != address or not claim.is_held, f"{address} is held by {drain} and {event.drain}"
            self._in_order(address, ids)
            expired = {m for m in ids if self._is_expired(self.messages[m])}
            self.claims[event.drain, address] = Claim(ids, expired)

    def _is_expired(self, message: Message) -> bool:
        return message.expires_h is not None and message.expires_h <= self.now_h

    def _in_order(self, address: str, ids: list[str]) -> None:
        # Promised is the order of first attempts without delay.
        mine = sorted((m for m in self.messages.values() if m.send.to == address), key=lambda m: m.seq)
        prompt = [m.id for m in mine if m.due_h is None and self.is_runnable(m)]
        taken = [message_id for message_id in ids if message_id in prompt]
        assert taken == prompt[: len(taken)], f"{address}: mail was overtaken: {taken} of {prompt}"

    def _counted(self, event: Counted) -> None:
        for message_id in event.ids:
            notes = [drain for drain, ids in self.notes.items() if message_id in ids and drain != event.drain]
            assert notes, f"a crash was counted for {message_id}, which nobody was running"
            for drain in notes:
                claims = [c for (d, _), c in self.claims.items() if d == drain and message_id in c.mail]
                assert not any(c.is_held for c in claims), f"a crash was counted while {drain} runs {message_id}"
                self.notes[drain].discard(message_id)
                if not self.notes[drain]:
                    del self.notes[drain]
            message = self.messages[message_id]
            message.crashes += 1
            message.rev += 1

    def _committed(self, drain: str, event: EntityTurns) -> None:
        entity = self.entities.setdefault(event.address, Entity())
        is_current = event.version == entity.version and all(
            turn.id in self.messages and self.messages[turn.id].rev == turn.rev for turn in event.turns
        )
        if event.lost:
            assert not is_current, f"{event.address} lost its commit, though nobody was faster"
            return
        assert is_current, f"{drain} committed {event.address} on top of what somebody else has changed"
        claim = self.claims[drain, event.address]
        for turn in event.turns:
            assert turn.id == claim.mail.pop(0), f"{event.address}: turns out of order"
            self._turned(self.messages[turn.id], entity, turn, is_expired=turn.id in claim.expired)
        entity.version += 1

    # One turn

    def _turned(self, message: Message, entity: Entity, turn: Turn, *, is_expired: bool) -> None:
        retry_in_h = None if is_expired else self._retry_in_h(message)
        assert turn.is_over == (retry_in_h is None), f"{message}: over or not, the policy says otherwise"
        if retry_in_h is not None:
            message.attempt += 1
            message.rev += 1
            message.due_h = self.now_h + retry_in_h
            message.is_blocking = message.send.to.startswith("Strict/")
            return
        del self.messages[message.id]
        status, result, reason = self._end(message, entity, turn, is_expired=is_expired)
        self.answers[message.id] = Answer(message.send, status, result, reason, self.now_h)
        if status == "dead":
            self.dead_letters.add(message.id)

    def _retry_in_h(self, message: Message) -> int | None:
        call = message.send.call
        if message.crashes >= MAX_CRASHES or not isinstance(call, Flaky) or message.attempt >= call.failures:
            return None
        return None if message.attempt >= MAX_RETRIES else int(2**message.attempt)

    def _end(
        self, message: Message, entity: Entity, turn: Turn, *, is_expired: bool
    ) -> tuple[str, str | None, str | None]:
        """Status, result and reason of a message's end, which changes its entity."""
        if message.crashes >= MAX_CRASHES:
            return "dead", None, "Quarantined"
        if is_expired:
            return "expired", None, None
        call = message.send.call
        match call:
            case Fail():
                return "failed", None, "HandlerFailed"
            case Flaky() if message.attempt < call.failures:
                return "dead", None, "HandlerFailed"
            case Close() | Delete():
                entity.log = None
                return "done", "null", None
            case Forward():
                forwarded = Send(call.to, Note(call.text), key=call.key)
                if self.becomes_of(forwarded) == "KeyConflict":
                    return "failed", None, "KeyConflict"
                assert len(turn.sent) == 1, (
                    f"{message} should have sent {forwarded}, and sent {len(turn.sent)} messages"
                )
                self.sent(forwarded, turn.sent[0])
            case Book():
                self.booked.append(call.text)
        entity.log = [*(entity.log or []), call.text]
        return "done", json.dumps(len(entity.log)), None
