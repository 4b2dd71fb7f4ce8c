"""The client: stores messages and waits for their replies. The port of every call outside a turn."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from entitycelery.address import Address, ShardId, is_message_id, quoted
from entitycelery.client.async_replies import AsyncReplies
from entitycelery.clock import Deadline
from entitycelery.effects import Send
from entitycelery.envelope import Envelope
from entitycelery.exceptions import (
    ConfigurationError,
    KeyConflict,
    MailboxFull,
    ReplyTimeout,
    SendTimeout,
    StoreUnavailable,
    UnknownMessage,
)
from entitycelery.failures import result_of
from entitycelery.message import AppendOutcome, NewMessage, Reply, StoredState
from entitycelery.settings import Settings
from entitycelery.storage.polling import PollingWaiter
from entitycelery.storage.port import ReplyWaiter, Store
from entitycelery.telemetry import Span, span
from entitycelery.transports.bell import Bell

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
        self._append(messages, connection)
        return [message.id for message in messages]

    async def asend(self, sends: Sequence[Send]) -> list[str]:
        return await asyncio.to_thread(self.send, sends)

    def _append(self, messages: Sequence[NewMessage], connection: Any = None) -> list[AppendOutcome]:
        if not messages:
            return []
        attended: set[ShardId] | None = None
        if connection is not None:
            outcomes = self._store.append(messages, nonce=_new_nonce(), connection=connection)
        else:
            outcomes, attended = self._stored(messages)
        for message, outcome in zip(messages, outcomes, strict=True):
            _refuse(message, outcome)
        if connection is None:
            stored = zip(messages, outcomes, strict=True)
            shards = {m.shard for m, outcome in stored if outcome is AppendOutcome.STORED and _due(m)}
            if attended is None:
                self._bell.mail_stored(shards, streaming=True)
            else:
                self._bell.asked(shards, attended, streaming=True)
        return outcomes

    def _stored(self, messages: Sequence[NewMessage]) -> tuple[list[AppendOutcome], set[ShardId] | None]:
        """What became of the messages; the attended shards, if that was asked in the same breath."""
        nonce = _new_nonce()
        deadline = Deadline(self._settings.send_timeout_s)
        attempt = 0
        while True:
            try:
                if attempt == 0 and self._can_ask_with(messages):
                    is_attended = self._store.append_and_ask(messages[0], nonce=nonce)
                    return [AppendOutcome.STORED], {messages[0].shard} if is_attended else set()
                # Whether a failed attempt committed is unknown; under the same nonce it cannot double.
                return self._store.append(messages, nonce=nonce, again=attempt > 0), None
            except StoreUnavailable as exc:
                attempt += 1
                if attempt > self._settings.send_retries or deadline.passed:
                    raise SendTimeout(
                        f"{len(messages)} message(s) could not be stored after {attempt} attempt(s): {exc}",
                        address=str(messages[0].address),
                        message_id=messages[0].id,
                    ) from exc
                time.sleep(min(deadline.left_s(), 0.05 * 2**attempt))

    def _can_ask_with(self, messages: Sequence[NewMessage]) -> bool:
        [first, *others] = messages
        is_plain = not others and not first.keyed and first.capacity is None and _due(first)
        return is_plain and self._bell.should_ask(first.shard)

    # Asking

    def ask(self, send: Send) -> str:
        self._may_block()
        _refuse_connection(send)
        timeout_s = self._timeout_s(send.options.timeout_s)
        with _ask_span(send) as seen, self._store.waiter() as waiter:
            # Listening began before the insert, so the announcement cannot be missed.
            message = self._envelope.message(send, reply_to=waiter.channel)
            seen.add(message_id=message.id)
            [outcome] = self._append([message])
            return self._await(message.id, waiter, timeout_s, look_first=outcome is AppendOutcome.DUPLICATE)

    async def aask(self, send: Send) -> str:
        _refuse_connection(send)
        timeout_s = self._timeout_s(send.options.timeout_s)
        with _ask_span(send) as seen:
            channel = await self._async_replies.channel()
            message = self._envelope.message(send, reply_to=channel)
            seen.add(message_id=message.id)
            await asyncio.to_thread(self._append, [message])
            return result_of(await self._areply(message.id, timeout_s))

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
        with self._store.waiter() as waiter:
            return self._await_reply(message_id, waiter, self._timeout_s(timeout_s), look_first=True)

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

    def _await(self, message_id: str, waiter: ReplyWaiter, timeout_s: float, *, look_first: bool) -> str:
        return result_of(self._await_reply(message_id, waiter, timeout_s, look_first=look_first))

    def _await_reply(self, message_id: str, waiter: ReplyWaiter, timeout_s: float, *, look_first: bool) -> Reply:
        deadline = Deadline(timeout_s)
        reply: Reply | None = None
        while reply is None:
            try:
                if look_first:
                    reply = self.reply_now(message_id)
                    look_first = False
                    continue
                waiter.wait(deadline.left_s())
                reply = self._store.replies([message_id]).get(message_id)
                if reply is None and deadline.passed:
                    reply = self.reply_now(message_id)
                    if reply is None:
                        raise _not_yet(message_id, timeout_s)
            except StoreUnavailable:
                # The message is stored; the database may be back before the caller's patience is over.
                if deadline.passed:
                    raise
                waiter = PollingWaiter(_LOOK_AGAIN_S, _LOOK_AGAIN_S)
                waiter.wait(deadline.left_s())
        return reply

    async def _areply(self, message_id: str, timeout_s: float) -> Reply:
        reply = await self._async_replies.wait(message_id, timeout_s)
        if reply is None:
            reply = await asyncio.to_thread(self.reply_now, message_id)
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


def _ask_span(send: Send) -> Span:
    return span("entity.ask", entity_address=str(send.address), operation=send.operation)


def _new_nonce() -> str:
    return os.urandom(8).hex()


def _due(message: NewMessage) -> bool:
    return not message.delay_s and message.deliver_at_epoch_s is None


def _refuse(message: NewMessage, outcome: AppendOutcome) -> None:
    who = {"address": str(message.address), "message_id": message.id}
    if outcome is AppendOutcome.CONFLICT:
        raise KeyConflict(
            f"{message.address} {message.operation}: the key was used before with other arguments; "
            "a key belongs to one message",
            **who,
        )
    if outcome is AppendOutcome.FULL:
        raise MailboxFull(
            f"{message.address} has {message.capacity} pending messages, which is its mailbox_capacity", **who
        )


def _refuse_connection(send: Send) -> None:
    if send.options.connection is not None:
        raise ConfigurationError(
            "ask with options(connection=...) would wait for a message that is stored only when your transaction "
            "commits: use send, commit, and then Sent.result()"
        )


def _not_yet(message_id: str, timeout_s: float) -> ReplyTimeout:
    return ReplyTimeout(
        f"message {message_id} is stored and not answered after {timeout_s:g} s; it will still be handled",
        message_id=message_id,
    )
