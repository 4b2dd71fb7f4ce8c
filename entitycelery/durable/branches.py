"""Branches of a body: functions that are run side by side, each with a journal of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from entitycelery.durable.cursor import Cursor
from entitycelery.durable.journal import Journal, Suspended
from entitycelery.durable.options import Options
from entitycelery.exceptions import ConfigurationError


class Ended(NamedTuple):
    """How a branch ended."""

    value: Any
    error: Exception | None

    def outcome(self) -> Any:
        """Its value, or its exception raised."""
        if self.error is not None:
            raise self.error
        return self.value


class Branches:
    """The gathers and races of one run."""

    def __init__(self, at: Cursor) -> None:
        self._at = at

    async def gather(self, options: Options, branches: Sequence[Any]) -> list[Any]:
        options.only("gather")
        label, entry = self._at.next("gather", "")
        journals = self._at.journal.branches(label, entry, len(branches))
        ended = [await self._run(branch, journal) for branch, journal in zip(branches, journals, strict=True)]
        if any(one is None for one in ended):
            self._at.journal.waiting += [wait for journal in journals for wait in journal.waiting]
            raise Suspended
        if entry.state == "pending":
            entry.finish(self._at.host.now_epoch_s())
        return [one.outcome() for one in ended if one is not None]

    async def race(self, options: Options, branches: Sequence[Any]) -> tuple[int, Any]:
        options.only("race")
        if not branches:
            raise ConfigurationError("flow.race(...) takes at least one branch")
        label, entry = self._at.next("race", "")
        journals = self._at.journal.branches(label, entry, len(branches))
        won: Ended | None = None
        for at, (branch, journal) in enumerate(zip(branches, journals, strict=True)):
            journal.is_over = journal.is_over or won is not None or (entry.state == "done" and entry.value != at)
            ended = await self._run(branch, journal)
            if ended is None or won is not None or (entry.state == "done" and entry.value != at):
                continue
            won = ended
            if entry.state == "pending":
                entry.finish(self._at.host.now_epoch_s(), at)
        waiting = [wait for journal in journals for wait in journal.waiting]
        if entry.state == "pending":
            self._at.journal.waiting += waiting
            raise Suspended
        if won is None:
            path = label.removeprefix(self._at.journal.bounds.prefix)
            raise self._at.journal.bounds.diverged(
                f"position {path}: branch {entry.value} has won the race, and does not end now"
            )
        for lost, withdraw in waiting:
            if lost.armed:
                withdraw()
            lost.state = "withdrawn"
        return entry.value, won.outcome()

    async def _run(self, branch: Any, journal: Journal) -> Ended | None:
        """How a branch ends, or None if it waits."""
        outer, self._at.journal = self._at.journal, journal
        journal.outer = outer
        ended = None
        try:
            ended = Ended(await self._at.resolved(branch() if callable(branch) else branch), None)
        except Suspended:
            return None
        except Exception as exc:  # noqa: BLE001 - the user's branch
            ended = Ended(None, exc)
        finally:
            self._at.journal = outer
        if not journal.is_over:
            journal.end()
        return ended
