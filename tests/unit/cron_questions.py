"""Questions at random: expressions, zones, and starts that are often shortly before a change of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import available_timezones

from entitycelery.scheduler.wall_clock import wall_clock
from tests.unit.cron_engines import Question

# Changes by an hour, by half an hour, by a day, at midnight, in the middle of an hour, before and after Ramadan, never.
UNUSUAL = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca",
    "Pacific/Apia", "Asia/Tehran", "America/St_Johns", "Europe/Dublin", "Pacific/Chatham", "America/Havana",
)  # fmt: skip
ALL = sorted(zone for zone in available_timezones() if "/" in zone)
_EARLIEST = datetime(2002, 1, 1, tzinfo=UTC)
_DAYS = 365 * 33


def question(random: Random, plain: bool) -> Question:
    """One question; a plain one has no form that Celery does not know."""
    zone = random.choice(UNUSUAL if random.random() < 0.6 else ALL)
    start = _EARLIEST + timedelta(days=random.randrange(_DAYS), seconds=random.randrange(86_400))
    near = random.random() < 0.7 and wall_clock(zone).first_change(start, start + timedelta(days=370))
    if near:
        start = near + timedelta(seconds=random.randint(-3 * 3600, 3 * 3600))
    start = start.replace(second=random.choice((0, 0, random.randrange(60))))
    return Question(_fields(random, bool(near), plain), zone, start, day_or=not plain)


def _fields(random: Random, near: bool, plain: bool) -> tuple[str, str, str, str, str]:
    minute, hour = _field(random, 0, 59, plain), _field(random, 0, 23, plain)
    if not near:
        return (minute, hour, *_days(random, plain))
    # What happens at the change would hardly ever be asked for otherwise.
    hour = random.choice((hour, "0", "1", "2", "3", "23", "1-3", "2,3", "0-4/2", "*/2"))
    month_day, _, week_day = _days(random, plain)
    return minute, hour, random.choice(("*", "*", "*", month_day)), "*", random.choice(("*", "*", week_day))


def _days(random: Random, plain: bool) -> tuple[str, str, str]:
    if not plain and random.random() < 0.1:
        return "*", _field(random, 1, 12, plain), f"{random.randrange(7)}#{random.randint(1, 5)}"
    last = not plain and random.random() < 0.1
    month_day = "L" if last else _field(random, 1, 31, plain)
    return month_day, _field(random, 1, 12, plain), _field(random, 0, 6, plain)


def _field(random: Random, least: int, most: int, plain: bool) -> str:
    first, last = sorted(random.sample(range(least, most + 1), 2))
    forms = ["*"] * 3 + [
        f"*/{random.randint(1, most)}",
        str(first),
        str(last),
        f"{first}-{last}",
        f"{first}-{last}/{random.randint(1, 9)}",
        ",".join(str(random.randint(least, most)) for _ in range(3)),
    ]
    if not plain and random.random() < 0.3:
        forms += [f"{first}/{random.randint(1, 9)}", f"{most}/{random.randint(1, 9)}"]
    return random.choice(forms)
