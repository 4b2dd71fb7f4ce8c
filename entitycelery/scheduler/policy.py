"""What becomes of ticks that are late."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from entitycelery.exceptions import ConfigurationError
from entitycelery.scheduler.every import LONGEST_S

Misfire = Literal["skip", "latest", "all"]
CalculateNextFrom = Literal["nominal", "actual"]

# From one a day to what no store can take.
LEAST_PER_S, MOST_PER_S = 1 / 86_400, 100_000.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How a schedule makes up for ticks it missed, and how punctual it is.

    misfire: Of the ticks later than `grace_s`, fire none (`skip`), the last (`latest`) or `all`; younger ones all fire.
    skip_if_older_than_s: Ticks later than this are dropped, whatever `misfire` says. None: no tick is.
    catch_up_per_s: With `all`, at most so many of the late ticks in a second.
    jitter_s: A tick fires up to so much later, always the same for the same name and tick; lateness counts from there.
    calculate_next_from: `actual`: the next tick of an interval is a whole interval after this one fired.
    """

    misfire: Misfire = "latest"
    grace_s: float = 60.0
    skip_if_older_than_s: float | None = None
    catch_up_per_s: float = 10.0
    jitter_s: float = 0.0
    calculate_next_from: CalculateNextFrom = "nominal"

    def check(self) -> None:
        """Look whether every value makes sense.

        Raises:
            ConfigurationError: One does not; the sentence names it.
        """
        for name, words in (("misfire", get_args(Misfire)), ("calculate_next_from", get_args(CalculateNextFrom))):
            if getattr(self, name) not in words:
                raise ConfigurationError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")
        for name in ("grace_s", "skip_if_older_than_s", "jitter_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LONGEST_S:
                raise ConfigurationError(f"{name} must be from 0 to {LONGEST_S:.0f} seconds, got {value!r}")
        if not LEAST_PER_S <= self.catch_up_per_s <= MOST_PER_S:
            raise ConfigurationError(
                f"catch_up_per_s must be from {LEAST_PER_S:g} to {MOST_PER_S:g}, got {self.catch_up_per_s!r}"
            )
