"""Drains that do not simply run: one that falls asleep with its claims, one whose process dies."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from entitycelery import EntityCelery
from entitycelery.address import ShardId
from tests.model.entities import IN_TURN
from tests.model.witness import Claimed, Event, Witness

_PATIENCE_S = 60.0


class Abandoned(BaseException):
    """The test is over: nobody will wake this drain."""


def drain(entities: EntityCelery, shards: Sequence[int]) -> None:
    """Work off everything that can be had."""
    drained = entities.host.drain(*[ShardId("default", number) for number in shards])
    assert not drained.more


class Sleeper:
    """A drain in a thread of its own that stops at one of its claims or commits until it is woken."""

    def __init__(
        self, entities: EntityCelery, witness: Witness, shards: Sequence[int], stops: str, number: int
    ) -> None:
        self._entities = entities
        self._witness = witness
        self._shards = shards
        self._stops = (stops, number)
        self._seen = 0
        self.drain: str | None = None
        self.error: BaseException | None = None
        self._is_asleep = False
        self._is_abandoned = False
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._stopped.wait(_PATIENCE_S), "the drain neither ends nor falls asleep"
        self._raise_error()

    @property
    def is_asleep(self) -> bool:
        return self._is_asleep

    def wake(self) -> None:
        """Let it go on, to its end."""
        self._woken.set()
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive(), "a drain that was woken does not end"
        self._is_asleep = False
        self._raise_error()

    def abandon(self) -> None:
        """End it where it sleeps."""
        self._is_abandoned = True
        self._woken.set()
        self._thread.join(_PATIENCE_S)

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            before = self._stop if self._stops[0] == "before commit" else _nothing
            after = self._stop if self._stops[0] == "after claim" else _nothing
            with self._witness.stopping(lambda what: before(f"before {what}"), lambda what: after(f"after {what}")):
                drain(self._entities, self._shards)
        except Abandoned:
            pass
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self.error = exc
        finally:
            self._stopped.set()

    def _stop(self, what: str) -> None:
        self._seen += what == self._stops[0]
        if what != self._stops[0] or self._seen != self._stops[1]:
            return
        claims = [event for event in self._witness.events if isinstance(event, Claimed)]
        self.drain = claims[-1].drain
        self._is_asleep = True
        self._stopped.set()
        assert self._woken.wait(10 * _PATIENCE_S)
        if self._is_abandoned:
            raise Abandoned


def drain_in_dying_process(
    make: Callable[[], EntityCelery], witness: Witness, shards: Sequence[int], at: str, number: int
) -> tuple[list[Event], bool]:
    """Drain in a forked process that ends at the n-th time that it comes to a place, as if by SIGKILL.

    What it did until then, and whether it came there.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _drain_and_die(make, witness, shards, at, number, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 7), f"the dying process failed with exit code {code}"
    events: list[Event] = pickle.loads(told)
    return events, code == 7


def _drain_and_die(
    make: Callable[[], EntityCelery], witness: Witness, shards: Sequence[int], at: str, number: int, pipe: int
) -> None:
    seen = 0
    witness.take()

    def come_to(place: str) -> None:
        nonlocal seen
        seen += place == at
        if place == at and seen == number:
            _tell_and_exit(witness, pipe, 7)

    try:
        IN_TURN.append(lambda: come_to("in turn"))
        with witness.stopping(lambda what: come_to(f"before {what}"), lambda what: come_to(f"after {what}")):
            drain(make(), shards)
        _tell_and_exit(witness, pipe, 0)
    except BaseException:  # noqa: BLE001 - a child of pytest must never go on as pytest
        traceback.print_exc()
    finally:
        os._exit(1)


def _tell_and_exit(witness: Witness, pipe: int, code: int) -> None:
    with os.fdopen(pipe, "wb") as told:
        pickle.dump(witness.take(), told)
    os._exit(code)


def _nothing(_: Any) -> None:
    """Nobody stops here."""
