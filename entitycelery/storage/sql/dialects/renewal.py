"""Renews what living drains hold where that expires: one thread per process, which ends when no drain is left."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from entitycelery.exceptions import EntityError

log = logging.getLogger("entitycelery.locks")


class Renewal:
    """Calls `renew` with the tokens of all living drains, every `every_s` seconds."""

    def __init__(self, renew: Callable[[Sequence[str]], None], every_s: float) -> None:
        self._renew = renew
        self._every_s = every_s
        self._begin_anew()

    def _begin_anew(self) -> None:
        # A parent's drains are not ours, its thread is not here, and the thread may have held the mutex at the fork.
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._tokens: set[str] = set()
        self._runs = False

    def add(self, token: str) -> None:
        """This drain lives, until `remove`."""
        if self._pid != os.getpid():
            self._begin_anew()
        with self._mutex:
            self._tokens.add(token)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="entitycelery-renewal", daemon=True).start()

    def remove(self, token: str) -> None:
        """Renew nothing more for this drain."""
        if self._pid == os.getpid():
            with self._mutex:
                self._tokens.discard(token)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._every_s)
            with self._mutex:
                tokens = sorted(self._tokens)
                if not tokens:
                    self._runs = False
                    return
            try:
                self._renew(tokens)
            except EntityError as exc:
                # Tried twice more before anything expires; what does is another drain's, and our commit loses.
                log.warning("the claims of %d drain(s) could not be renewed: %s", len(tokens), exc)
            except Exception:
                log.exception("the claims of %d drain(s) could not be renewed", len(tokens))
