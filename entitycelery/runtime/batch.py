"""What a drain knows of the entities it has claimed: which have begun, what they did, what is not committed yet.

Shared between the thread that runs turns, the event loop's and the watch's; the drain's mutex guards it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from entitycelery.context import Turn
from entitycelery.entity_type import EntityType
from entitycelery.exceptions import (
    AlreadyProcessing,
    EntityError,
    KeyConflict,
    MailboxFull,
    SerializationFailed,
    TurnTimeout,
)
from entitycelery.failures import failure_from
from entitycelery.message import Answer, AppendOutcome, Ended, EntityCommit, Mail, Mailbox, NewMessage, Retried, Status
from entitycelery.runtime.firing import Firing
from entitycelery.runtime.turn import Snapshot, Step

log = logging.getLogger("entitycelery.drain")

UNSTORABLE_PAUSE_S = 60.0


class RunningTurn:
    """A turn whose user code is running."""

    __slots__ = ("mail", "started_s", "task", "timed_out", "turn")

    def __init__(self, mail: Mail, turn: Turn) -> None:
        self.mail = mail
        self.turn = turn
        self.started_s = time.monotonic()
        self.task: Any = None
        self.timed_out: TurnTimeout | None = None


class EntityRun:
    """One claimed entity on its way through the batch."""

    def __init__(
        self,
        mailbox: Mailbox,
        kind: EntityType | None,
        firing: Firing,
        answer: Callable[[Answer], NewMessage | None] = lambda _: None,
    ) -> None:
        """Make it; `answer` makes the mail with which a reply goes to an entity that asked."""
        self._answer = answer
        self.mailbox = mailbox
        self.kind = kind
        self.firing = firing
        self.address = mailbox.address
        self.version = mailbox.stored.version
        self.base = Snapshot(
            mailbox.stored.state, mailbox.stored.state_version, mailbox.stored.timers, mailbox.stored.signals
        )
        self.steps: list[Step] = []
        self.left: deque[Mail] = deque(mailbox.mail)
        self.running: RunningTurn | None = None
        self.lost = False
        self._doomed = False

    @property
    def snapshot(self) -> Snapshot:
        """The state after the last finished turn."""
        return self.steps[-1].after if self.steps else self.base

    def finished(self, step: Step) -> None:
        """A turn is over; unless the entity was lost meanwhile, it waits for the commit."""
        self.running = None
        if self.lost:
            return
        self.steps.append(step)
        if isinstance(step.turn, Retried) and step.turn.blocking:
            self.left.clear()
        elif isinstance(step.turn, Ended) and step.turn.disarmed:
            self.left = deque(mail for mail in self.left if mail.id not in step.turn.disarmed)

    def commit(self) -> EntityCommit:
        """What the finished turns leave behind."""
        snapshot = self.snapshot
        self.steps = [self._answering(step) for step in self.steps]
        turns = tuple(step.turn for step in self.steps)
        return EntityCommit(
            self.address,
            self.mailbox.lock_key,
            self.version,
            snapshot.state_version,
            snapshot.state,
            turns,
            snapshot.timers,
            snapshot.signals,
        )

    def _answering(self, step: Step) -> Step:
        """The step, with the mail to the entities that wait for its replies; a second time it has it already."""
        turn = step.turn
        if not isinstance(turn, Ended) or not any(reply.reply_to for reply in turn.replies):
            return step
        sent = {message.id for message in turn.outgoing}
        mail = [one for reply in turn.replies if (one := self._answer(reply)) is not None and one.id not in sent]
        if not mail:
            return step
        return Step(msgspec.structs.replace(turn, outgoing=(*turn.outgoing, *mail)), step.after, step.expected)

    def committed(self) -> list[Step]:
        """The commit won: the finished turns are history."""
        steps, self.steps = self.steps, []
        self.base = steps[-1].after
        self.version += 1
        if self._doomed:
            self.give_up()
        return steps

    def give_up(self) -> None:
        """Another writer was faster, or the turn timed out: nothing more of this entity counts here."""
        self.lost = True
        self.steps.clear()
        self.left.clear()

    def fail_unstorable(self, said: str) -> None:
        """The database does not take these turns: the first one alone is tried, then its failure, then it must wait."""
        before, step = self.base, self.steps[0]
        mail = step.turn.mail
        self.left.clear()
        self._doomed = self.running is not None
        if len(self.steps) > 1:
            self.steps[1:] = []
            return
        sentence = f"the store does not take what the turn of {mail.address} {mail.operation} left: {said}"
        failure = failure_from(SerializationFailed(sentence, address=str(mail.address), message_id=mail.id))
        if isinstance(step.turn, Ended) and step.turn.status is Status.FAILED:
            # Even this end: something is wrong with the row itself, which only an operator can mend.
            self.steps[:] = [Step(Retried(mail, UNSTORABLE_PAUSE_S, False, failure, counts=False), before)]
        elif isinstance(step.turn, Ended) or step.turn.counts:
            failed = Step(Ended(mail, Status.FAILED, failure=failure), before)
            self.steps[:] = [self.firing.conclude(failed, before)]
        else:
            log.error("a message can be neither handled nor put off: %s", sentence)
            self.give_up()

    def fail_refused(self, refused: Mapping[NewMessage, AppendOutcome], holders: Mapping[NewMessage, str]) -> None:
        """A turn whose outgoing mail was refused failed, and the turns after it run again."""
        for index, step in enumerate(self.steps):
            if not isinstance(step.turn, Ended):
                continue
            bad = next((message for message in step.turn.outgoing if message in refused), None)
            if bad is None:
                continue
            before = self.steps[index - 1].after if index else self.base
            error = _refusal(bad, refused[bad], holders.get(bad))
            failed = Step(Ended(step.turn.mail, Status.FAILED, failure=failure_from(error)), before)
            self.steps[index:] = [self.firing.conclude(failed, before)]
            self.left.clear()
            # A turn that runs now began with a state that will never have been.
            self._doomed = self.running is not None
            return


def _refusal(message: NewMessage, outcome: AppendOutcome, holder: str | None) -> EntityError:
    what, address = f"the turn's message to {message.address} {message.operation}", str(message.address)
    if outcome is AppendOutcome.CONFLICT:
        return KeyConflict(f"{what} has a key that was used with other arguments", address=address)
    if outcome is AppendOutcome.TAKEN:
        return AlreadyProcessing(f"{what} has a key that {holder} holds", address=address, message_id=holder)
    return MailboxFull(f"{what} found the mailbox full", address=address)


def is_asynchronous(run: EntityRun) -> bool:
    """Whether all mail of an entity goes to `async def` handlers."""
    kind = run.kind
    if kind is None:
        return False
    operations = [kind.operations.get(mail.operation) for mail in run.left]
    return all(operation is not None and operation.is_async for operation in operations)


def uncommitted(runs: Sequence[EntityRun]) -> list[EntityRun]:
    """Entities with finished turns that wait for a commit."""
    return [run for run in runs if run.steps]
