"""Waiting for replies on an event loop: one watcher per loop, however many waiters."""

from __future__ import annotations

import asyncio
import logging
import weakref
from contextlib import ExitStack

from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import Reply
from entitycelery.storage.port import ReplyWaiter, Store

log = logging.getLogger("entitycelery.replies")

_FIRST_POLL_S = 0.005
_LONGEST_POLL_S = {True: 1.0, False: 0.1}


class AsyncReplies:
    """Hands out the watcher of the running loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watcher] = weakref.WeakKeyDictionary()

    async def channel(self) -> str | None:
        """The channel on which this loop's replies are announced; listening has begun."""
        return await self._watcher().channel()

    async def wait(self, message_id: str, timeout_s: float) -> Reply | None:
        """The reply of a message, or None after `timeout_s`."""
        return await self._watcher().wait(message_id, timeout_s)

    def _watcher(self) -> _Watcher:
        loop = asyncio.get_running_loop()
        watcher = self._watchers.get(loop)
        if watcher is None:
            watcher = self._watchers[loop] = _Watcher(self._store, loop)
        return watcher


class _Watcher:
    """Looks for the replies of all waiters of one loop in one query, when announced and now and then."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._waiting: dict[str, list[asyncio.Future[Reply]]] = {}
        self._listening = ExitStack()
        self._waiter: ReplyWaiter | None = None
        # Kept, since a connection that is lost does not tell it any more.
        self._fileno: int | None = None
        self._announced = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def channel(self) -> str | None:
        async with self._starting:
            if self._waiter is None:
                self._waiter = await asyncio.to_thread(self._listening.enter_context, self._store.waiter())
                self._fileno = self._waiter.fileno()
                if self._fileno is not None:
                    self._loop.add_reader(self._fileno, self._on_announcement)
        return self._waiter.channel

    async def wait(self, message_id: str, timeout_s: float) -> Reply | None:
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.setdefault(message_id, []).append(future)
        self._announced.set()
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._watch())
            self._task.add_done_callback(self._on_end)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return None
        finally:
            futures = self._waiting.get(message_id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiting.pop(message_id, None)

    def _on_announcement(self) -> None:
        try:
            if self._waiter is not None:
                self._waiter.take()
        except StoreUnavailable as exc:
            # Looking now and then goes on; the next ask listens anew.
            log.warning("no announcements of replies for now: %s", exc)
            self._stop_listening()
        self._announced.set()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is None:
            return
        # What the store does not declare: nobody looks any more, so nobody may go on waiting.
        self._stop_listening()
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(failure)

    async def _watch(self) -> None:
        pause_s = _FIRST_POLL_S
        while self._waiting:
            self._announced.clear()
            try:
                found = await asyncio.to_thread(self._store.replies, list(self._waiting))
            except StoreUnavailable as exc:
                log.warning("could not look for replies, looking again: %s", exc)
                found = {}
            for message_id, reply in found.items():
                for future in self._waiting.pop(message_id, []):
                    if not future.done():
                        future.set_result(reply)
            try:
                await asyncio.wait_for(self._announced.wait(), pause_s)
                pause_s = _FIRST_POLL_S
            except TimeoutError:
                pause_s = min(_LONGEST_POLL_S[self._is_listening()], pause_s * 1.5)
        self._stop_listening()

    def _is_listening(self) -> bool:
        return self._waiter is not None and self._waiter.channel is not None

    def _stop_listening(self) -> None:
        if self._fileno is not None:
            self._loop.remove_reader(self._fileno)
        self._fileno = None
        self._waiter = None
        self._listening.close()
