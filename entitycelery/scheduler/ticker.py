"""The scheduler: fires what is due and says when to come back. Any number of them may run side by side.

Of two that fire the same tick one finds the schedule moved on, so several runners, several beats and both together
change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import timedelta

from entitycelery.address import ShardId, shard_of
from entitycelery.clock import utc_from_epoch
from entitycelery.exceptions import EntityError
from entitycelery.scheduler.definition import TickMail, decode_definition
from entitycelery.scheduler.plan import plan
from entitycelery.scheduler.recurrence import Tick, has
from entitycelery.storage.timetable import Timetable
from entitycelery.stored_schedule import Move, NextTick, StoredSchedule
from entitycelery.telemetry import happened

log = logging.getLogger("entitycelery.scheduler")

AT_ONCE = 100
_TICKS_AT_ONCE = 100
_PASSES = 10
_PAUSE_AFTER_FAILURE = timedelta(seconds=60)


class Ticker:
    """Fires the ticks of one cluster."""

    def __init__(
        self,
        timetable: Timetable,
        cluster: str,
        *,
        shards_per_group: Callable[[], int],
        stored: Callable[[Collection[ShardId]], None],
        fired_at: int = logging.DEBUG,
    ) -> None:
        """Make it.

        Args:
            shards_per_group: Asked anew each time, since a reshard changes it.
            stored: Told of the shards for which there is mail now.
            fired_at: The level at which each tick is logged.
        """
        self._fired_at = fired_at
        self._timetable = timetable
        self._cluster = cluster
        self._shards_per_group = shards_per_group
        self._stored = stored

    def run(self) -> float | None:
        """Fire what is due; in how many seconds the next tick is, 0 if there is more to do, None if there is none.

        Raises:
            StoreUnavailable: The store does not answer; nothing is lost, and what fired has fired.
        """
        for _ in range(_PASSES):
            now_epoch_s, due = self._timetable.due(AT_ONCE)
            if due:
                self._fire(due, now_epoch_s)
            if len(due) < AT_ONCE:
                return self._timetable.first_look_s()
        return 0.0

    def compare(self) -> None:
        """Log which schedules would have another next tick if it were computed now; none is changed for it.

        Their expression means something else to this release of croniter than to the one that computed it.
        """
        for stored in self._timetable.all():
            self._compare(stored)

    def _compare(self, stored: StoredSchedule) -> None:
        if stored.tick is None or stored.tick_at_epoch_s is None:
            return
        tick = Tick(stored.tick, utc_from_epoch(stored.tick_at_epoch_s))
        try:
            recurrence = decode_definition(stored.definition).recurrence
            if has(recurrence, tick):
                return
            found = recurrence.first(tick.at)
        except EntityError as exc:
            log.warning("schedule %s cannot be read: %s", stored.name, exc)
            return
        log.warning(
            "schedule %s fires at %s as it was stored; by %s as it is read today it would not, but at %s",
            *(stored.name, tick.nominal, recurrence.describe(), found.nominal if found else "no time"),
            extra={"schedule": stored.name},
        )

    def _fire(self, due: Collection[StoredSchedule], now_epoch_s: float) -> None:
        mail = TickMail(self._cluster, self._shards_per_group())
        moved = self._timetable.move([self._move(stored, now_epoch_s, mail) for stored in due])
        messages = [message for ticks in moved.messages.values() for message in ticks]
        if messages:
            shards = self._shards_per_group()
            # A reshard may have come in between.
            self._stored({shard_of(m.shard.group, m.address.id, shards) for m in messages})
        for name, ticks in moved.messages.items():
            for message in ticks:
                fields = {"schedule": name, "message_id": message.id, "address": str(message.address)}
                log.log(self._fired_at, "tick of schedule %s for %s", name, message.address, extra=fields)
                happened("entity.schedule.fired", **fields)

    def _move(self, stored: StoredSchedule, now_epoch_s: float, mail: TickMail) -> Move:
        try:
            return self._planned(stored, now_epoch_s, mail)
        except Exception as exc:
            log.error("schedule %s cannot be planned: %s", stored.name, exc, exc_info=not isinstance(exc, EntityError))
            again = utc_from_epoch(now_epoch_s) + _PAUSE_AFTER_FAILURE
            at_epoch_s = stored.tick_at_epoch_s or now_epoch_s
            kept = NextTick(stored.tick or "", at_epoch_s, again.timestamp())
            return Move(stored.name, stored.generation, stored.tick, kept, failure=str(exc) or type(exc).__name__)

    def _planned(self, stored: StoredSchedule, now_epoch_s: float, mail: TickMail) -> Move:
        definition = decode_definition(stored.definition)
        at_epoch_s = now_epoch_s if stored.tick_at_epoch_s is None else stored.tick_at_epoch_s
        tick = Tick(stored.tick or "", utc_from_epoch(at_epoch_s))
        planned = plan(
            *(definition.recurrence, definition.policy, tick, utc_from_epoch(now_epoch_s)),
            budget=_TICKS_AT_ONCE,
            name=stored.name,
        )
        following = definition.next_tick(stored.name, planned.next)
        if following is not None and planned.look_at is not None:
            following = NextTick(following.nominal, following.at_epoch_s, planned.look_at.timestamp())
        if planned.skipped:
            self._log_skipped(stored.name, planned.skipped, more=planned.skipped_more)
        return Move(
            stored.name,
            stored.generation,
            stored.tick,
            following,
            messages=tuple(mail.message(stored.name, definition, fired) for fired in planned.fire),
            last_tick=planned.fire[-1].nominal if planned.fire else None,
            skipped=planned.skipped,
            overlap=definition.overlap,
        )

    @staticmethod
    def _log_skipped(name: str, skipped: int, *, more: bool) -> None:
        many = f"{skipped} or more" if more else str(skipped)
        log.warning("schedule %s: %s late ticks do not fire", name, many, extra={"schedule": name})
        happened("entity.schedule.skipped", schedule=name, skipped=skipped)
