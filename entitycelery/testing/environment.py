"""`EntityTestEnvironment`: the entities of an app on a store in memory, under a clock of the test's own."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self

import msgspec

from entitycelery.address import Address
from entitycelery.app import EntityCelery, current_entities
from entitycelery.calls import Prepared
from entitycelery.clock import epoch_from, utc_from_epoch
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import PendingSignal
from entitycelery.parts import Parts
from entitycelery.ref import address_of
from entitycelery.scheduler.ticker import Ticker
from entitycelery.settings import Settings
from entitycelery.signals import SIGNAL
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from entitycelery.testing.inline import InlineClient, NoRinger

# Everything that will ever be due is seen.
_HORIZON_S = 1e11
_MOST_TURNS = 100_000


class SentMessage(msgspec.Struct, frozen=True):
    """A message that was sent and has not been handled: to whom, which operation, with which arguments; `due`: not
    before."""

    address: Address
    operation: str
    args: dict[str, Any]
    due: datetime | None


class EntityTestEnvironment:
    """Hosts the entities of an app on this thread, on a store of its own in memory. A context manager.

    Nothing runs by itself: `ask` and `result` run turns until they have their answer, `run` all that can run now,
    `skip` all that is due on the way. One turn is one commit. The broker, the database and the workers of the app's
    settings are not touched; other settings of the app hold.
    """

    def __init__(self, entities: EntityCelery | None = None, *, start: datetime | None = None) -> None:
        """Make it.

        Args:
            entities: Those of the current app, unless given.
            start: The instant at which it begins; now, unless given.
        """
        self._entities = entities or current_entities()
        self._now_s = time.time() if start is None else epoch_from(start)
        self._active = ExitStack()
        self._parts: Parts | None = None

    def __enter__(self) -> Self:
        entities = self._entities
        # One turn is one commit, and all shards are one.
        settings = dataclasses.replace(
            entities.read_settings(), shards_per_group=1, batch_size=1, drain_budget_s=1e-9, auto_migrate=True
        )
        store = self._make_store(settings)
        store.schema.upgrade()
        self._active.callback(store.close)
        client_of = functools.partial(InlineClient, step=self.step)
        self._parts = entities.assemble_on(settings, store, NoRinger(), client_of, self._run_task)
        # Time passes only as the test says.
        self._parts.host.monotonic_s = lambda: 0.0
        self._active.enter_context(entities.working_with(self._parts))
        entities.store_schedules()
        return self

    def __exit__(
        self, cls: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._active.close()
        self._parts = None

    def _make_store(self, settings: Settings) -> SqlStore:
        return SqlStore(
            driver_url("sqlite:///:memory:"),
            cluster=settings.cluster,
            shards_per_group=settings.shards_per_group,
            connections=settings.connections,
            timeout_s=settings.send_timeout_s,
            horizon_s=_HORIZON_S,
            clock=lambda: self._now_s,
        )

    def _run_task(self, name: str, args: list[Any], kwargs: dict[str, Any], **options: Any) -> None:
        """Run a Celery task here and now, in place of sending it."""
        app = self._entities.app
        app.finalize()
        if name not in app.tasks:
            raise ConfigurationError(f"there is no Celery task {name!r} in {app!r}")
        app.tasks[name].apply(tuple(args), kwargs, throw=False, **options)

    @property
    def now(self) -> datetime:
        """The present instant, as the store has it. `datetime.now()` in a handler is another clock."""
        return utc_from_epoch(self._now_s)

    # Running

    def step(self) -> bool:
        """Run the next turn that can run; whether there was one."""
        parts = self._running()
        loads = parts.store.shard_loads()
        return any(parts.host.drain(load.shard).turns for load in loads)

    def run(self) -> int:
        """Run everything that can run now, and what follows from it; how many turns that was.

        Raises:
            ConfigurationError: It does not end: entities go on sending to each other.
        """
        turns = 0
        self._fire_ticks()
        while self.step():
            turns += 1
            if turns >= _MOST_TURNS:
                raise ConfigurationError(f"{_MOST_TURNS:,} turns, and there is still mail: it does not end")
        return turns

    def skip(self, **duration: float) -> int:
        """Let time pass, given as to `timedelta`: `skip(days=7, minutes=1)`. Whatever is due on the way is run at its
        moment: delayed mail, retries, timers, time-outs, schedules. How many turns that was.

        Raises:
            ConfigurationError: Time would run backwards; or as `run`.
        """
        passing_s = timedelta(**duration).total_seconds()
        if passing_s < 0:
            raise ConfigurationError(f"skip(...) goes forward only, got {duration}")
        until_s = self._now_s + passing_s
        turns = self.run()
        while (next_s := self._next_moment_s()) is not None and next_s <= until_s:
            self._now_s = max(self._now_s, next_s)
            turns += self.run()
        self._now_s = until_s
        return turns + self.run()

    def _next_moment_s(self) -> float | None:
        parts = self._running()
        shards = [load.shard for load in parts.store.shard_loads()]
        mail_s = parts.store.due_moments(dict.fromkeys(shards, self._now_s)).next_epoch_s if shards else None
        look_s = parts.store.timetable.first_look_s()
        moments = [mail_s, None if look_s is None else self._now_s + look_s]
        return min((moment for moment in moments if moment is not None), default=None)

    def _fire_ticks(self) -> None:
        store = self._running().store
        ticker = Ticker(
            store.timetable, store.cluster, shards_per_group=lambda: store.shards_per_group, stored=lambda shards: None
        )
        while ticker.run() == 0:
            continue

    def _running(self) -> Parts:
        if self._parts is None:
            raise ConfigurationError("the environment is not entered: use it in a with statement")
        return self._parts

    # What was sent

    def sent(self, ref: object = None) -> list[SentMessage]:
        """Messages that were sent and not handled, in order; to one entity where `ref` is given."""
        parts = self._running()
        address = None if ref is None else address_of(ref)
        shard = None if address is None else parts.envelope.shard(address)
        return [
            SentMessage(
                message.address,
                message.operation,
                json.loads(message.args),
                None if message.due_at_epoch_s is None else utc_from_epoch(message.due_at_epoch_s),
            )
            for message in parts.store.pending(address, shard, _MOST_TURNS)
            if message.operation != SIGNAL
        ]

    def assert_sent(self, call: Prepared[Any]) -> SentMessage:
        """The one message that is such a call, `Account.ref("bob").deposit.prepare(30)`, and not handled yet.

        Raises:
            AssertionError: There is none, or more than one; the sentence lists what was sent.
        """
        wanted = (call.send.address, call.send.operation, json.loads(call.send.args))
        sent = self.sent()
        found = [one for one in sent if (one.address, one.operation, one.args) == wanted]
        listed = "\n".join(f"  {one.address} {one.operation} {one.args}" for one in sent) or "  nothing"
        if len(found) != 1:
            address, operation, args = wanted
            raise AssertionError(f"{len(found)} messages are {address} {operation} {args}; sent were:\n{listed}")
        return found[0]

    def signals(self, ref: object = None) -> list[PendingSignal]:
        """Signals that wait."""
        self._running()
        return self._entities.signals(ref, limit=_MOST_TURNS)
