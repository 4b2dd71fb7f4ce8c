"""Steps of a body, and what undoes them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from entitycelery import codec
from entitycelery.durable.cursor import Cursor, moment_s, name_of, return_type, typed
from entitycelery.durable.journal import Entry
from entitycelery.durable.options import NO_TURN_OPTIONS, Options
from entitycelery.exceptions import ConfigurationError
from entitycelery.failures import exception_from, failure_from
from entitycelery.operation import HandlerOptions


class Steps:
    """The steps of one run. One of them runs in each turn."""

    def __init__(self, at: Cursor) -> None:
        self.undoing = False
        self._at = at
        self._compensations: list[tuple[str, Callable[[], Any], int]] = []
        self._has_stepped = False
        self._goes_on = False
        self._key: str | None = None

    @property
    def key(self) -> str:
        """The idempotency key of the step that runs now."""
        if self._key is None:
            raise ConfigurationError("flow.step_key exists only while a step runs")
        return self._key

    async def run(self, options: Options, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        retry = options.only("a step", "retry").retry
        name = name_of(function)
        label, entry = self._at.next("step", name, args, kwargs)
        if entry.state == "pending":
            await self._attempt(label, entry, lambda: function(*args, **kwargs), retry)
        if entry.failure is not None:
            raise exception_from(entry.failure, address=self._at.address, message_id=f"{self._at.address}#{label}")
        return typed(entry.value, return_type(function), f"the result of step {name!r} of {self._at.address}")

    async def _attempt(self, label: str, entry: Entry, run: Callable[[], Any], options: HandlerOptions) -> None:
        self._at.begin(entry)
        now_epoch_s = self._at.host.now_epoch_s()
        if entry.due_epoch_s is not None and entry.due_epoch_s > now_epoch_s:
            self._at.wait(entry)
        if self._has_stepped:
            # What the step before gave is committed before anything acts on it.
            if not self._goes_on:
                self._at.host.go_on()
                self._goes_on = True
            # Not for a moment any more.
            entry.due_epoch_s = None
            self._at.wait(entry)
        self._has_stepped = True
        self._key = f"{self._at.address}#{label}"
        try:
            value = codec.from_json(
                codec.to_json(
                    await self._at.resolved(run()), f"the result of step {entry.name!r} of {self._at.address}"
                )
            )
        except Exception as exc:  # noqa: BLE001 - the user's step
            self._failed_step(entry, exc, options)
        else:
            entry.finish(self._at.host.now_epoch_s(), value)
        finally:
            self._key = None

    def _failed_step(self, entry: Entry, exc: Exception, options: HandlerOptions) -> None:
        policy = options.retry
        may_retry = isinstance(exc, policy.autoretry_for)
        if may_retry and (policy.max_retries is None or entry.attempt < policy.max_retries):
            delay_s = policy.delay_s(entry.attempt, random.uniform)
            entry.attempt += 1
            entry.due_epoch_s = moment_s(self._at.host.now_epoch_s() + delay_s)
            self._at.wait(entry)
        entry.finish(self._at.host.now_epoch_s(), failure=failure_from(exc))

    async def undo_all(self) -> None:
        """Run all compensations, the last one first."""
        self.undoing = True
        for name, undo, registered_at in reversed(self._compensations):
            await self._undo(name, undo, registered_at)

    async def _undo(self, name: str, function: Callable[[], Any], registered_at: int) -> None:
        # A step like others; one that fails is left at that, and the others run all the same.
        label, entry = self._at.next("undo", name)
        if entry.state == "pending":
            self._at.cancelled, entry.undoes = False, registered_at
            await self._attempt(label, entry, function, NO_TURN_OPTIONS)

    def compensate(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        # Within a branch the position that counts is that of the gather or the race.
        self._compensations.append((name_of(function), lambda: function(*args, **kwargs), self._at.top().position))
