"""Once: a single instant."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from entitycelery.scheduler.tick import Tick, as_utc, utc_tick


class Once(msgspec.Struct, frozen=True, tag_field="kind", tag="once"):
    """A single tick."""

    at: datetime

    def __post_init__(self) -> None:
        # Equal recurrences are written alike.
        if self.at.tzinfo is not None:
            msgspec.structs.force_setattr(self, "at", self.at.astimezone(UTC))

    def first(self, after: datetime) -> Tick | None:
        """The tick, if it is after an instant."""
        return utc_tick(self.at) if as_utc(self.at) > as_utc(after) else None

    def following(self, tick: Tick) -> Tick | None:
        """None: there is one tick only."""
        return None

    def latest(self, not_after: datetime) -> Tick | None:
        """The tick, if it is due at an instant or before."""
        return utc_tick(self.at) if as_utc(self.at) <= as_utc(not_after) else None

    def describe(self) -> str:
        """The recurrence in words."""
        return f"once at {as_utc(self.at).isoformat()}"

    def check(self) -> None:
        """Look whether it can ever fire.

        Raises:
            ConfigurationError: It has no time zone.
        """
        as_utc(self.at)
