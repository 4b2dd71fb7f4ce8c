"""Pools that are hit by a signal where it hurts."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.concurrency.thread import TaskPool


class EndedWhileSubmitting(TaskPool):
    """Threads of a worker that is told to end coldly while it submits the first call, holding the executor's locks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = _EndedWhileSubmitting(max_workers=self.limit)


class _EndedWhileSubmitting(ThreadPoolExecutor):
    has_been_told = False

    def _adjust_thread_count(self) -> None:
        super()._adjust_thread_count()  # type: ignore[misc] # not of its stubs
        if not self.has_been_told:
            self.has_been_told = True
            os.kill(os.getpid(), signal.SIGQUIT)
