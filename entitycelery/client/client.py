"""The client: stores messages and waits for their replies. The port of every call outside a turn."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from entitycelery.address import Address, ShardId, is_message_id, quoted
from entitycelery.client.async_replies import AsyncReplies
from entitycelery.client.refusals import refuse, refuse_connection
from entitycelery.clock import Deadline
from entitycelery.effects import Complete, Send
from entitycelery.envelope import Envelope
from entitycelery.exceptions import (
    ConfigurationError,
    ReplyTimeout,
    SendTimeout,
    StoreUnavailable,
    UnknownMessage,
)
from entitycelery.failures import result_of
from entitycelery.message import Appended, AppendOutcome, NewMessage, Reply, StoredState
from entitycelery.settings import Settings
from entitycelery.signals import Event, SignalOutcome, Signals
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import ReplyWaiter, Store
from entitycelery.telemetry import Span, span
from entitycelery.transports.bell import Bell

T = TypeVar("T")

_LOOK_AGAIN_S = 0.2


class Client:
    """See `Port` for what each method promises."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        envelope: Envelope,
        bell: Bell,
        may_block: Callable[[], None],
        async_result: Callable[[str, Callable[[str], Any]], Any],
    ) -> None:
        self._store = store
        self._settings = settings
        self._envelope = envelope
        self._bell = bell
        self._may_block = may_block
        self._async_result = async_result
        self._async_replies = AsyncReplies(store)

    # Sending

    def send(self, sends: Sequence[Send]) -> list[str]:
        with span("entity.send", messages=len(sends)):
            return self._send(sends)

    def _send(self, sends: Sequence[Send]) -> list[str]:
        messages = [self._envelope.message(send) for send in sends]
        self._envelope.check_total(len(sends), sum(len(send.args) for send in sends))
        connections = {id(send.options.connection): send.options.connection for send in sends}
        if len(connections) > 1:
            raise ConfigurationError("all messages of one send_many go through the same options(connection=...)")
        [connection] = connections.values() or [None]
        if any(message.unique is not None for message in messages):
            return [one.message_id for one in self._append_unique(messages, connection)]
        self._append(messages, connection)
        return [message.id for message in messages]

    async def asend(self, sends: Sequence[Send]) -> list[str]:
        return await asyncio.to_thread(self.send, sends)

    def _append(
        self, messages: Sequence[NewMessage], connection: Any = None, *, awaited: bool = False
    ) -> list[AppendOutcome]:
        if not messages:
            return []
        attended: set[ShardId] | None = None
        if connection is not None:
            outcomes = self._store.append(messages, nonce=_new_nonce(), connection=connection)
        else:
            outcomes, attended = self._stored(messages, awaited=awaited)
        for message, outcome in zip(messages, outcomes, strict=True):
            refuse(message, outcome, message.id)
        if connection is None:
            stored = zip(messages, outcomes, strict=True)
            due = [m for m, outcome in stored if outcome is AppendOutcome.STORED and not m.is_delayed]
            shards = {self._envelope.shard_of_stored(m) for m in due}
            if attended is None:
                self._bell.mail_stored(shards, streaming=True)
            else:
                self._bell.asked(shards, attended, streaming=True)
        return outcomes

    def _append_unique(self, messages: Sequence[NewMessage], connection: Any = None) -> list[Appended]:
        nonce, store = _new_nonce(), self._store
        if connection is not None:
            appended = store.append_unique(messages, nonce=nonce, connection=connection)
        else:
            appended = self._repeated(
                messages, lambda attempt: store.append_unique(messages, nonce=nonce, again=attempt > 0)
            )
        for message, one in zip(messages, appended, strict=True):
            refuse(message, one.outcome, one.message_id)
        if connection is None:
            shards = {self._envelope.shard_of_stored(message) for message in messages if not message.is_delayed}
            self._bell.mail_stored(shards, streaming=True)
        return appended

    def _stored(
        self, messages: Sequence[NewMessage], *, awaited: bool
    ) -> tuple[list[AppendOutcome], set[ShardId] | None]:
        """What became of the messages; the attended shards, if that was asked in the same breath.

        `awaited`: whoever sends does not go on before the reply is there, and looks after a message that gets lost.
        """
        nonce = _new_nonce()

        def store(attempt: int) -> tuple[list[AppendOutcome], set[ShardId] | None]:
            if attempt == 0 and _is_plain(messages):
                [message] = messages
                if self._bell.should_ask(message.shard):
                    is_attended = self._store.append_and_ask(message, nonce=nonce, flushed=not awaited)
                    return [AppendOutcome.STORED], {message.shard} if is_attended else set()
                if awaited:
                    self._store.append_unflushed(message, nonce=nonce)
                    return [AppendOutcome.STORED], None
            # Whether a failed attempt committed is unknown; under the same nonce it cannot double.
            return self._store.append(messages, nonce=nonce, again=attempt > 0), None

        return self._repeated(messages, store)

    def _repeated(self, messages: Sequence[NewMessage], store: Callable[[int], T]) -> T:
        """What `store` gives, which is tried again while the database is away; it is told the number of the attempt."""
        deadline = Deadline(self._settings.send_timeout_s)
        attempt = 0
        while True:
            try:
                return store(attempt)
            except StoreUnavailable as exc:
                attempt += 1
                if attempt > self._settings.send_retries or deadline.passed:
                    raise SendTimeout(
                        f"{len(messages)} message(s) could not be stored after {attempt} attempt(s): {exc}",
                        address=str(messages[0].address),
                        message_id=messages[0].id,
                    ) from exc
                time.sleep(min(deadline.left_s(), 0.05 * 2**attempt))

    # Signals

    def complete(self, complete: Complete) -> SignalOutcome:
        address, name, number = complete.signal
        message = self._envelope.signal(address, Event(name, number, outcome=complete.outcome))
        nonce = _new_nonce()
        outcome = self._repeated(
            [message], lambda attempt: self._store.complete(message, nonce=nonce, again=attempt > 0)
        )
        if outcome is not SignalOutcome.OVER:
            self._bell.mail_stored({self._envelope.shard_of_stored(message)})
        return outcome

    def signals(self, address: Address) -> Signals:
        return Signals(self._store.state(address).signals)

    # Asking

    def ask(self, send: Send) -> str:
        self._may_block()
        refuse_connection(send)
        timeout_s = self._timeout_s(send.options.timeout_s)
        with _ask_span(send) as seen, self._store.waiter() as waiter:
            # Listening began before the insert, so the announcement cannot be missed.
            message = self._envelope.message(send, reply_to=waiter.channel)
            seen.add(message_id=message.id)
            outcome, message_id, sent = self._asked(message, timeout_s)
            look_first = outcome is not AppendOutcome.STORED
            reply = self._await_reply(message_id, waiter, timeout_s, look_first=look_first, sent=sent)
            return reply if isinstance(reply, str) else result_of(reply)

    async def aask(self, send: Send) -> str:
        refuse_connection(send)
        timeout_s = self._timeout_s(send.options.timeout_s)
        with _ask_span(send) as seen:
            channel = await self._async_replies.channel()
            message = self._envelope.message(send, reply_to=channel)
            seen.add(message_id=message.id)
            _, message_id, sent = await asyncio.to_thread(self._asked, message, timeout_s)
            return result_of(await self._areply(message_id, timeout_s, sent))

    def _asked(self, message: NewMessage, timeout_s: float) -> tuple[AppendOutcome, str, NewMessage | None]:
        """Store the message of an ask: what became of it, what answers it, and the message itself if its commit may not
        be on disk yet, so that a database which crashes at once may lose it."""
        if message.unique is not None:
            [appended] = self._append_unique([message])
            return appended.outcome, appended.message_id, None
        # Whoever waits for longer could take what was handled, and purged, for lost.
        awaited = timeout_s < self._settings.reply_retention_s
        [outcome] = self._append([message], awaited=awaited)
        return outcome, message.id, message if awaited and outcome is AppendOutcome.STORED else None

    def result(self, message_id: str, timeout_s: float | None) -> str:
        self._may_block()
        return result_of(self.reply(message_id, timeout_s))

    async def aresult(self, message_id: str, timeout_s: float | None) -> str:
        return result_of(await self._areply(message_id, self._timeout_s(timeout_s)))

    def reply(self, message_id: str, timeout_s: float | None = None) -> Reply:
        """Wait for the reply of a stored message.

        Raises:
            ReplyTimeout: Not answered within `timeout_s` (None: `entity_ask_timeout_s`).
            UnknownMessage: Never stored, or purged.
        """
        reply = self._await_reply(message_id, self._store.looker(), self._timeout_s(timeout_s), look_first=True)
        assert isinstance(reply, Reply), "nothing is announced to a looker"
        return reply

    def reply_now(self, message_id: str) -> Reply | None:
        """The reply, if it is there; None if the message is pending.

        Raises:
            UnknownMessage: Never stored, or purged.
        """
        for _ in range(2):
            reply = self._store.replies([message_id]).get(message_id)
            if reply is not None:
                return reply
            if self._store.pending_ids([message_id]):
                return None
            # Neither: it may have ended between the two looks.
        raise UnknownMessage(
            f"message {message_id if is_message_id(message_id) else quoted(message_id)} was never stored, "
            "or its reply is older than entity_reply_retention_s",
            message_id=message_id,
        )

    def _await_reply(
        self,
        message_id: str,
        waiter: ReplyWaiter,
        timeout_s: float,
        *,
        look_first: bool,
        sent: NewMessage | None = None,
    ) -> Reply | str:
        """Wait for a reply, or its result if that was announced. A message that was `sent`, and that its database has
        lost, is stored again."""
        deadline = Deadline(timeout_s)
        while True:
            try:
                if look_first:
                    look_first = False
                    reply = self._reply_of(message_id, sent)
                    if reply is not None:
                        return reply
                    continue
                if waiter.wait(deadline.left_s()) and (result := waiter.heard(message_id)) is not None:
                    return result
                reply = self._store.replies([message_id]).get(message_id)
                if reply is None and deadline.passed:
                    reply = self._reply_at_last(message_id, sent)
                    if reply is None:
                        raise _not_yet(message_id, timeout_s)
                if reply is not None:
                    return reply
            except StoreUnavailable:
                # The database may be back before the caller's patience is over.
                if deadline.passed:
                    raise
                waiter = PollingWaiter(_LOOK_AGAIN_S, first_s=_LOOK_AGAIN_S)
                waiter.wait(deadline.left_s())
                look_first = sent is not None

    def _reply_at_last(self, message_id: str, sent: NewMessage | None) -> Reply | None:
        """The reply, if it is there; else the message is pending, and on disk."""
        if sent is not None:
            self._store.flush()
        return self._reply_of(message_id, sent)

    def _reply_of(self, message_id: str, sent: NewMessage | None) -> Reply | None:
        try:
            return self.reply_now(message_id)
        except UnknownMessage:
            if sent is None:
                raise
        self._store.append([sent], nonce=_new_nonce(), again=True)
        self._bell.mail_stored({self._envelope.shard_of_stored(sent)})
        return None

    async def _areply(self, message_id: str, timeout_s: float, sent: NewMessage | None = None) -> Reply:
        reply = await self._async_replies.wait(message_id, timeout_s)
        if reply is None:
            reply = await asyncio.to_thread(self._reply_at_last, message_id, sent)
        if reply is None:
            raise _not_yet(message_id, timeout_s)
        return reply

    # Reading

    def load(self, address: Address) -> StoredState:
        return self._store.state(address)

    def async_result(self, message_id: str, decode: Callable[[str], Any]) -> Any:
        return self._async_result(message_id, decode)

    def _timeout_s(self, given_s: float | None) -> float:
        return self._settings.ask_timeout_s if given_s is None else given_s


def _is_plain(messages: Sequence[NewMessage]) -> bool:
    """Whether it is one message that is due at once, whose insert nothing can refuse."""
    [first, *others] = messages
    return not others and not first.keyed and first.capacity is None and not first.is_delayed


def _ask_span(send: Send) -> Span:
    return span("entity.ask", entity_address=str(send.address), operation=send.operation)


def _new_nonce() -> str:
    return os.urandom(8).hex()


def _not_yet(message_id: str, timeout_s: float) -> ReplyTimeout:
    return ReplyTimeout(
        f"message {message_id} is stored and not answered after {timeout_s:g} s; it will still be handled",
        message_id=message_id,
    )
