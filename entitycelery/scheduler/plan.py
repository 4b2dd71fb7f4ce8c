"""What a schedule does now: which ticks fire, which are dropped, and when to look again.

Pure: the same arguments give the same plan, and nothing is remembered between two. Whoever carries a plan out stores
`next` and `look_at`, and does not ask again before.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

import msgspec

from entitycelery.scheduler.every import Every
from entitycelery.scheduler.policy import Policy
from entitycelery.scheduler.recurrence import Recurrence, Tick
from entitycelery.scheduler.tick import MICROSECOND, as_utc, utc_tick

# Dropped ticks of a cron job are counted one by one, so only so far.
MOST_COUNTED = 10


class Plan(msgspec.Struct, frozen=True):
    """Fire these, in this order; then `next` stands, and nothing is to do before `look_at`.

    `skipped` ticks were dropped, or more where `skipped_more` is true. `next` None: there is no tick any more.
    """

    fire: tuple[Tick, ...]
    skipped: int
    next: Tick | None
    look_at: datetime | None
    skipped_more: bool = False


def plan(
    recurrence: Recurrence, policy: Policy, next_tick: Tick, now: datetime, *, budget: int, name: str = ""
) -> Plan:
    """What to do at `now` about a schedule whose next tick is `next_tick`, with at most `budget` ticks fired.

    Raises:
        ConfigurationError: The recurrence cannot be computed; see its `check`.
    """
    planner = _Planner(recurrence, policy, next_tick, as_utc(now), max(1, budget), name)
    if policy.calculate_next_from == "actual" and isinstance(recurrence, Every):
        return planner.from_actual(recurrence)
    return planner.from_nominal()


def jitter(policy: Policy, name: str, tick: Tick) -> timedelta:
    """How much after its time a tick of the schedule `name` fires: at random, and always the same."""
    if not policy.jitter_s:
        return timedelta(0)
    drawn = int.from_bytes(hashlib.sha256(f"{name}\0{tick.nominal}".encode()).digest()[:8], "big")
    # Rounded down, so it is less than jitter_s.
    return timedelta(microseconds=int(policy.jitter_s * 1_000_000) * drawn >> 64)


class _Planner:
    """Walks from the next tick towards now, and notes on the way what fires and what does not."""

    def __init__(
        self, recurrence: Recurrence, policy: Policy, tick: Tick, now: datetime, budget: int, name: str
    ) -> None:
        self._recurrence = recurrence
        self._policy = policy
        self._tick: Tick | None = tick
        self._now = now
        self._budget = budget
        self._name = name
        self._fire: list[Tick] = []
        self._skipped = 0
        self._skipped_more = False
        self._look_at: datetime | None = None
        # Jitter may be longer than the grace; a tick is not late before it could fire.
        self._late_before = now - timedelta(seconds=policy.grace_s + policy.jitter_s)
        older_s = policy.skip_if_older_than_s
        self._old_before = None if older_s is None else now - timedelta(seconds=older_s + policy.jitter_s)

    def from_nominal(self) -> Plan:
        if not self._is_due():
            return self._plan()
        if self._old_before is not None and self._is_before(self._old_before):
            self._skip_to(self._recurrence.first(self._old_before - MICROSECOND))
        if self._is_before(self._late_before):
            self._misfire()
        while self._look_at is None and self._is_due() and len(self._fire) < self._budget:
            self._take()
        return self._plan()

    def from_actual(self, every: Every) -> Plan:
        if not self._is_due():
            return self._plan()
        late = self._policy.misfire == "skip" and self._is_before(self._late_before)
        if late or (self._old_before is not None and self._is_before(self._old_before)):
            self._skipped = 1
        elif self._tick is not None:
            self._fire.append(self._tick)
        self._tick = utc_tick(self._now + every.interval)
        return self._plan()

    def _misfire(self) -> None:
        if self._policy.misfire == "skip":
            self._skip_to(self._recurrence.first(self._late_before - MICROSECOND))
        elif self._policy.misfire == "latest":
            latest = self._recurrence.latest(self._late_before - MICROSECOND)
            # A tick of another time, before the recurrence was changed, may be the only one.
            if latest is not None and not self._is_after(latest.at):
                self._skip_to(latest)
            self._take()
        else:
            self._catch_up()

    def _catch_up(self) -> None:
        rate = self._policy.catch_up_per_s
        while len(self._fire) < min(self._budget, max(1, int(rate))) and self._is_before(self._late_before):
            self._take()
        if self._is_before(self._late_before):
            self._look_at = self._now + timedelta(seconds=len(self._fire) / rate)

    def _take(self) -> None:
        if self._tick is not None:
            self._fire.append(self._tick)
            self._tick = self._recurrence.following(self._tick)

    def _skip_to(self, target: Tick | None) -> None:
        tick, self._tick = self._tick, target
        if isinstance(self._recurrence, Every) and tick is not None and target is not None and tick.at < target.at:
            self._skipped += 1 + self._recurrence.between(tick.at + MICROSECOND, target.at)
            return
        for _ in range(MOST_COUNTED):
            if tick is None or tick == target:
                return
            self._skipped += 1
            tick = self._recurrence.following(tick)
        self._skipped_more = self._skipped_more or (tick is not None and tick != target)

    def _is_due(self) -> bool:
        return self._tick is not None and self._due(self._tick) <= self._now

    def _is_before(self, instant: datetime) -> bool:
        return self._tick is not None and self._tick.at < instant

    def _is_after(self, instant: datetime) -> bool:
        return self._tick is not None and self._tick.at > instant

    def _due(self, tick: Tick) -> datetime:
        return tick.at + jitter(self._policy, self._name, tick)

    def _plan(self) -> Plan:
        look_at = self._look_at
        if look_at is None and self._tick is not None:
            look_at = max(self._due(self._tick), self._now)
        return Plan(tuple(self._fire), self._skipped, self._tick, look_at, self._skipped_more)
