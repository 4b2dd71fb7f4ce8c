"""Who counts as gone among the runners that one of them sees. Pure."""

from __future__ import annotations

from collections.abc import Collection

from entitycelery.placement import Runner
from entitycelery.settings import Settings


def why_gone(runner: Runner, me: Runner, condemned: Collection[str], settings: Settings) -> str | None:
    """Why `me` takes a runner for gone; None where it does not. `condemned` are instances, by the health check."""
    if runner.locked is False:
        return "its session ended"
    if runner.instance == me.instance:
        return None
    if runner.unseen_s > settings.lease_timeout_s:
        return f"not seen for {runner.unseen_s:.1f} s"
    # A check that was made before it was seen again is not the last word.
    if runner.instance in condemned and runner.unseen_s > settings.suspect_after_s:
        return "taken for dead by the health check"
    return None
