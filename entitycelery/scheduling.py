"""Schedules through `entities` while everything runs: made, looked at, paused, triggered, removed."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Unpack

from entitycelery.calls import checked_instant, checked_s
from entitycelery.client.definitions import Definitions, ScheduleOptions
from entitycelery.client.schedule_status import ScheduleStatus, status_of
from entitycelery.clock import utc_from_epoch
from entitycelery.exceptions import ConfigurationError, UnknownSchedule
from entitycelery.limits import valid_name
from entitycelery.message import AppendOutcome
from entitycelery.parts import Parts
from entitycelery.port import current_port
from entitycelery.scheduler.definition import TickMail, decode_definition
from entitycelery.scheduler.recurrence import Once, Recurrence, Tick
from entitycelery.stored_schedule import StoredSchedule

_PAGE = 200
MOST_BACKFILLED = 10_000


class Scheduling(ABC):
    """The part of `EntityCelery` that schedules. None of it can be part of a turn: inside one it is a
    ConfigurationError."""

    @abstractmethod
    def _ready(self) -> Parts:
        """The parts, with a store that has its schema."""

    @abstractmethod
    def _definitions(self) -> Definitions:
        """What makes definitions for this app."""

    def schedule(
        self,
        name: str,
        *,
        target: object,
        cron: str | None = None,
        every_s: float | timedelta | None = None,
        at: datetime | None = None,
        when: object = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        task_options: Mapping[str, Any] | None = None,
        paused: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleStatus:
        """Store a schedule, in the place of an earlier one of this name.

        Args:
            target: An operation of an entity, `Account.ref("alice").bill` or `.bill.prepare(5)`; or a workflow, of
                which each tick starts one; or a Celery task, or its name.
            cron, every_s, at, when: One of them: a cron expression; an interval, counted from now; an instant; or a
                `crontab`, `schedule` or `solar` of Celery's.
            args, kwargs: The arguments of the target.
            task_options: Options of a Celery task's `apply_async`, such as `queue`.
            paused: Store it paused; one that is paused already stays so in any case.

        Raises:
            ConfigurationError: Something of it makes no sense.
            MalformedMessage: The arguments do not fit the operation.
        """
        _refuse_in_turn("schedule")
        given = [one for one in (cron, every_s, at, when) if one is not None]
        if len(given) != 1:
            raise ConfigurationError(f"schedule({name!r}) takes one of cron, every_s, at and when; got {len(given)}")
        store = self._ready().store
        now = utc_from_epoch(store.timetable.now_epoch_s())
        instant = checked_instant("at", at)
        moment = Once(instant) if instant is not None else checked_s("every_s", every_s) or given[0]
        definitions = self._definitions()
        aimed = definitions.target(target, args, kwargs, task_options)
        new = definitions.new(
            *(valid_name("a schedule", name), moment, aimed, options, "api"), now=now, anchor=now, paused=paused
        )
        store.timetable.put([new])
        if paused:
            # One that was there already is as it was in this.
            store.timetable.pause(name)
        return self.schedule_of(name)

    def schedules(self) -> list[ScheduleStatus]:
        """All schedules, by name."""
        now_epoch_s = self._ready().store.timetable.now_epoch_s()
        return [status_of(stored, now_epoch_s) for stored in self._ready().store.timetable.all()]

    def schedule_of(self, name: str) -> ScheduleStatus:
        """One schedule.

        Raises:
            UnknownSchedule: There is none of this name.
        """
        return status_of(self._known(name), self._ready().store.timetable.now_epoch_s())

    def pause_schedule(self, name: str) -> ScheduleStatus:
        """Have a schedule fire no more until it is resumed.

        Raises:
            UnknownSchedule: There is none of this name.
        """
        _refuse_in_turn("pause_schedule")
        self._ready().store.timetable.pause(self._known(name).name)
        return self.schedule_of(name)

    def resume_schedule(self, name: str) -> ScheduleStatus:
        """Have a paused schedule fire again, from now on: what it would have fired meanwhile is not made up for.

        Raises:
            UnknownSchedule: There is none of this name.
        """
        _refuse_in_turn("resume_schedule")
        store = self._ready().store
        stored = self._known(name)
        following = decode_definition(stored.definition).first_tick(name, utc_from_epoch(store.timetable.now_epoch_s()))
        store.timetable.resume(stored, following)
        return self.schedule_of(name)

    def trigger_schedule(self, name: str) -> str:
        """Fire a schedule now, once, beside its ticks; the message's id. A paused one too.

        Raises:
            UnknownSchedule: There is none of this name.
        """
        _refuse_in_turn("trigger_schedule")
        parts = self._ready()
        now = utc_from_epoch(parts.store.timetable.now_epoch_s())
        definition = decode_definition(self._known(name).definition)
        message = _mail(parts).message(name, definition, Tick("now", now), once=False)
        parts.store.timetable.trigger(name, message)
        parts.host.bell.mail_stored([parts.envelope.shard_of_stored(message)])
        return message.id

    def backfill_schedule(self, name: str, start: datetime, end: datetime) -> list[str]:
        """Fire the ticks of a schedule from `start` on and before `end` that have not fired; their message ids.

        What has fired within `entity_reply_retention_s` is known and does not fire again.

        Raises:
            UnknownSchedule: There is none of this name.
            ConfigurationError: There are more than 10,000 ticks, or the instants make no sense.
        """
        _refuse_in_turn("backfill_schedule")
        parts = self._ready()
        definition = decode_definition(self._known(name).definition)
        ticks = list(_between(definition.recurrence, start, end))
        mail = _mail(parts)
        stored: list[str] = []
        for begin in range(0, len(ticks), _PAGE):
            messages = [mail.message(name, definition, tick) for tick in ticks[begin : begin + _PAGE]]
            # One by one: a tick whose target said something else then is known, and refuses only itself.
            new = [m for m in messages if parts.store.append([m], nonce=os.urandom(8).hex())[0] is AppendOutcome.STORED]
            parts.host.bell.mail_stored({parts.envelope.shard_of_stored(message) for message in new})
            stored += [message.id for message in new]
        return stored

    def next_ticks(self, name: str, count: int = 5) -> list[Tick]:
        """The next ticks of a schedule, as it would fire them.

        Raises:
            UnknownSchedule: There is none of this name.
        """
        stored = self._known(name)
        recurrence = decode_definition(stored.definition).recurrence
        if stored.tick is None or stored.tick_at_epoch_s is None:
            return []
        ticks = [Tick(stored.tick, utc_from_epoch(stored.tick_at_epoch_s))]
        while len(ticks) < count and (following := recurrence.following(ticks[-1])) is not None:
            ticks.append(following)
        return ticks[:count]

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule; messages that it has fired stay. One that code declares comes back with the next worker.

        Raises:
            UnknownSchedule: There is none of this name.
        """
        _refuse_in_turn("remove_schedule")
        if not self._ready().store.timetable.remove(name):
            raise _unknown(name)

    def _known(self, name: str) -> StoredSchedule:
        stored = self._ready().store.timetable.one(name)
        if stored is None:
            raise _unknown(name)
        return stored


def _between(recurrence: Recurrence, start: datetime, end: datetime) -> Iterator[Tick]:
    checked_instant("start", start)
    checked_instant("end", end)
    tick = recurrence.first(start - timedelta(microseconds=1))
    for count in range(MOST_BACKFILLED + 1):
        if tick is None or tick.at >= end:
            return
        if count == MOST_BACKFILLED:
            raise ConfigurationError(f"there are more than {MOST_BACKFILLED:,} ticks between these instants")
        yield tick
        tick = recurrence.following(tick)


def _mail(parts: Parts) -> TickMail:
    return TickMail(parts.settings.cluster, parts.store.shards_per_group)


def _unknown(name: str) -> UnknownSchedule:
    return UnknownSchedule(f"there is no schedule {name!r:.80}")


def _refuse_in_turn(verb: str) -> None:
    if current_port.get() is not None:
        raise ConfigurationError(f"{verb} inside a turn would not be part of its commit: do it outside")
