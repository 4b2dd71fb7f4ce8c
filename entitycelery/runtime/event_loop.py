"""One event loop per process, on a thread of its own, for `async def` handlers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class EventLoopThread:
    """Runs coroutines; starts at first use, anew after a fork. At most `concurrency` run at the same time."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._mutex = threading.Lock()
        self._pid: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: asyncio.Semaphore | None = None

    def submit(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        """Run a coroutine as soon as a slot is free."""
        loop = self._running_loop()
        return asyncio.run_coroutine_threadsafe(self._in_slot(coroutine), loop)

    async def _in_slot(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._slots is not None
        async with self._slots:
            await coroutine

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._mutex:
            if self._loop is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._slots = asyncio.Semaphore(self._concurrency)
                threading.Thread(target=self._loop.run_forever, name="entitycelery-async", daemon=True).start()
            return self._loop
