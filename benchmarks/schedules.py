"""Schedules: how fast a scheduler fires what is due at one moment, and what a look costs while nothing is."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime, timedelta

from benchmarks.bench import Setup, fresh_database
from entitycelery.scheduler.recurrence import Every
from entitycelery.scheduler.ticker import Ticker

MANY = 10_000
_LOOKS = 200
_AGO = timedelta(days=1)


def schedules(setup: Setup) -> dict[str, float]:
    """Ticks that one scheduler stores in a second, of 10,000 schedules that are due at once; how long a look takes
    beside ten schedules, and beside 10,000, none of them due."""
    with fresh_database(setup):
        ten_ms = _look_ms(10)
        many_ms = _look_ms(MANY)
        fired_per_s = _fired_per_s(MANY)
    return {
        f"ticks stored/s, {MANY:,} schedules due at once": fired_per_s,
        "look of a scheduler ms p50, 10 schedules": ten_ms,
        f"look of a scheduler ms p50, {MANY:,} schedules": many_ms,
    }


def _ticker() -> Ticker:
    from benchmarks.app import entities  # noqa: PLC0415 - reads its settings when it is imported

    store = entities.store
    return Ticker(
        store.timetable,
        entities.settings.cluster,
        shards_per_group=lambda: store.shards_per_group,
        stored=lambda shards: None,
    )


def _look_ms(count: int) -> float:
    _store(count, datetime.now(UTC) + _AGO)
    ticker = _ticker()
    taken = []
    for _ in range(_LOOKS):
        began_s = time.perf_counter()
        ticker.run()
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken) * 1000


def _fired_per_s(count: int) -> float:
    # Anchored so that each has one tick that is due, and the next a day later.
    _store(count, datetime.now(UTC) - timedelta(seconds=5), due=True)
    ticker = _ticker()
    began_s = time.perf_counter()
    while ticker.run() == 0.0:
        pass
    return count / (time.perf_counter() - began_s)


def _store(count: int, anchor: datetime, *, due: bool = False) -> None:
    from benchmarks.app import Account, entities  # noqa: PLC0415 - reads its settings when it is imported

    definitions = entities._definitions()
    new = []
    for number in range(count):
        target = definitions.target(Account.ref(f"s{number}").deposit, [1], None, None)
        now = anchor - timedelta(seconds=1) if due else datetime.now(UTC)
        when = Every(86_400.0, anchor)
        new.append(definitions.new(f"s{number}", when, target, {}, "api", now=now, anchor=anchor))
    for first in range(0, count, 500):
        entities.store.timetable.put(new[first : first + 500])
