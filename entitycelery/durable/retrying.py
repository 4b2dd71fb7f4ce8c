"""From where a workflow that failed or was cancelled is run again."""

from __future__ import annotations

from collections.abc import Sequence

from entitycelery.durable.journal import Entry
from entitycelery.exceptions import ConfigurationError

RETRYABLE = ("failed", "cancelled")


def position_of_retry(address: str, status: str, journal: Sequence[Entry], from_step: int | None) -> int:
    """The first position that is done again: `from_step`, or where it is None that of the last call that failed or
    was still waiting; the beginning, if anything was undone.

    Raises:
        ConfigurationError: It did not fail; there is no such position; or what was done before it is undone, and would
            be taken as done.
    """
    if status not in RETRYABLE:
        raise ConfigurationError(f"{address} is {status}: only what failed or was cancelled is retried")
    calls = [entry for entry in journal if entry.kind != "undo"]
    # A compensation is registered just behind what it undoes, at the earliest before it.
    undone = [max(entry.undoes - 1, 0) for entry in journal if entry.undoes is not None and entry.state != "pending"]
    if from_step is None:
        return 0 if undone else _last_open(calls)
    if not 0 <= from_step <= len(calls):
        raise ConfigurationError(f"{address} has the positions 0 to {len(calls)}, got {from_step}")
    if undone and from_step > min(undone):
        raise ConfigurationError(
            f"{address} has undone what position {min(undone)} did: begin from {min(undone)} or before, got {from_step}"
        )
    return from_step


def _last_open(calls: Sequence[Entry]) -> int:
    open_ones = [at for at, entry in enumerate(calls) if entry.state in ("pending", "withdrawn")]
    failed = [at for at, entry in enumerate(calls) if entry.state == "failed"]
    return min([*open_ones[:1], *failed[-1:]], default=len(calls))
