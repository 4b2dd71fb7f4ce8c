"""A client whose waiting is work: it runs turns itself until the reply is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from entitycelery.address import ShardId
from entitycelery.client.client import Client
from entitycelery.exceptions import ReplyTimeout
from entitycelery.message import NewMessage, Reply
from entitycelery.storage.port import ReplyWaiter


class NoRinger:
    """Rings nowhere: nobody sleeps."""

    def ring(self, shards: Sequence[ShardId]) -> None:
        return


class InlineClient(Client):
    """Handles mail, one turn after the other, until what it waits for is answered."""

    def __init__(self, *, step: Callable[[], bool], **parts: Any) -> None:
        """Make it; `step` runs the next turn that can run, and tells whether there was one."""
        super().__init__(**parts)
        self._step = step

    def _await_reply(
        self,
        message_id: str,
        waiter: ReplyWaiter,
        timeout_s: float,
        *,
        look_first: bool,
        sent: NewMessage | None = None,
    ) -> Reply | str:
        return self._run_until_answered(message_id)

    async def _areply(self, message_id: str, timeout_s: float, sent: NewMessage | None = None) -> Reply:
        return await asyncio.to_thread(self._run_until_answered, message_id)

    def _run_until_answered(self, message_id: str) -> Reply:
        while (reply := self.reply_now(message_id)) is None:
            if not self._step():
                raise ReplyTimeout(
                    f"message {message_id} is not answered, and no turn can run now: what it waits for may need "
                    "env.skip(...) or a signal",
                    message_id=message_id,
                )
        return reply
