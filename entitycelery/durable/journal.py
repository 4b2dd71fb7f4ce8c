"""The journal of a workflow: what its body has done, by position. What is in it is remembered, and never done again.

Positions are counted as the body calls; so a body must call in the same order each time it is run. One that does not
finds another kind or name at a position than it calls, and fails with both. Each branch of a gather or a race counts
for itself, so that the order in which branches go on does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from entitycelery.exceptions import ConfigurationError, NonDeterminism
from entitycelery.message import Failure

Kind = Literal[
    "step", "undo", "sleep", "wait", "send", "ask", "task", "child", "gather", "race", "now", "random", "uuid"
]
State = Literal["pending", "done", "failed", "withdrawn"]


class Suspended(BaseException):
    """The body waits. No handler of a user's is to catch it."""


class ContinuedAsNew(BaseException):
    """The workflow begins anew, with these arguments as JSON."""

    def __init__(self, arguments: str) -> None:
        self.arguments = arguments


class Entry(msgspec.Struct, omit_defaults=True):
    """What was called at one position.

    Attributes:
        state: `withdrawn`: it waited for something that was not waited for any more: the workflow was cancelled, or
            another branch won the race.
        value: What it gave, as plain JSON values; of a race which branch has won; of a task that runs its id.
        due_epoch_s: Of a sleep when it ends; of a step when it is tried again; of others when their time is over.
        attempt: How many attempts of a step have failed, or how often a task was sent again.
        at_epoch_s: When it was called, and `done_epoch_s` when it was over.
        armed: Whether it has begun to wait for somebody else.
        undoes: Of a compensation at which position it was registered.
        branches: Of a gather or a race the journals of its branches.
    """

    kind: Kind
    name: str
    state: State = "pending"
    value: Any = None
    failure: Failure | None = None
    due_epoch_s: float | None = None
    attempt: int = 0
    at_epoch_s: float = 0.0
    done_epoch_s: float | None = None
    armed: bool = False
    undoes: int | None = None
    branches: list[list[Entry]] | None = None

    def described(self) -> str:
        return f"{self.kind} {self.name!r}" if self.name else self.kind

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        return self.attempt + (self.kind == "task" or (self.kind in ("step", "undo") and self.state != "pending"))

    def finish(self, now_epoch_s: float, value: Any = None, failure: Failure | None = None) -> None:
        """It is over, with a value or a failure."""
        self.value, self.failure, self.done_epoch_s = value, failure, now_epoch_s
        self.state = "failed" if failure else "done"


def walk(entries: Sequence[Entry], prefix: str = "") -> Iterator[tuple[str, Entry]]:
    """All entries with their labels, those of branches behind what has the branches."""
    for position, entry in enumerate(entries):
        label = f"{prefix}{position}"
        yield label, entry
        for number, branch in enumerate(entry.branches or ()):
            yield from walk(branch, f"{label}.{number}.")


def labelled(entries: Sequence[Entry], run: int, label: str) -> Entry | None:
    """The entry of a label; None if there is none in this run."""
    of_run, _, path = label.rpartition(":")
    if of_run != (str(run) if run else ""):
        return None
    try:
        *branches, position = [int(number) for number in path.split(".")]
        for at, number in zip(branches[::2], branches[1::2], strict=True):
            entries = (entries[at].branches or [])[number]
        return entries[position]
    except (ValueError, IndexError):
        return None


class Bounds:
    """What the journals of one workflow share while its body runs.

    `run` counts how often the workflow began anew or was retried. It is part of every label, so that what an earlier
    run waits for, or did outside under the label as idempotency key, is not taken for what this run does.
    """

    def __init__(self, entries: Sequence[Entry], most: int, address: str, run: int = 0) -> None:
        self.address = address
        self.most = most
        self.count = sum(1 for _ in walk(entries))
        self.prefix = f"{run}:" if run else ""
        self.divergence: NonDeterminism | None = None
        """Kept: a body may catch what it is raised with, and go on to a wrong end."""

    def diverged(self, sentence: str) -> NonDeterminism:
        """The exception of a body that does something else than its journal says."""
        self.divergence = NonDeterminism(
            f"{self.address}, {sentence}. A body must make the same calls each time it is run; if its code was "
            "changed, keep the old branch for running workflows with flow.version(...)",
            address=self.address,
        )
        return self.divergence


class Journal:
    """The entries of one workflow, or of one branch of it, while the body runs; and how far the body has come.

    `is_over`: nothing new is to happen in it: a branch that has lost its race, or a body that is run for a check.
    `waiting`: what it waits for, each with how to wait for it no more. `outer`: of a branch the journal it is in.
    """

    def __init__(self, entries: list[Entry], bounds: Bounds, path: str = "", *, is_over: bool = False) -> None:
        self.entries = entries
        self.bounds = bounds
        self.position = 0
        self.is_over = is_over
        self.outer: Journal | None = None
        self.waiting: list[tuple[Entry, Callable[[], object]]] = []
        self._path = path

    @property
    def is_replaying(self) -> bool:
        """Whether the next call is one of an earlier run."""
        return self.position < len(self.entries)

    def next(self, kind: Kind, name: str, now_epoch_s: float) -> tuple[str, Entry]:
        """The label and the entry of the call that the body makes now, a new entry if it never came so far.

        Raises:
            NonDeterminism: An earlier run called something else here.
            ConfigurationError: The journal is as long as it may be.
            Suspended: Nothing new is to happen.
        """
        position = self.position
        path = f"{self._path}{position}"
        self.position += 1
        if position < len(self.entries):
            entry = self.entries[position]
            if (entry.kind, entry.name) != (kind, name):
                raise self._diverged(path, entry, f"the body calls {Entry(kind, name).described()}")
            return self.bounds.prefix + path, entry
        bounds = self.bounds
        if self.is_over:
            raise Suspended
        if bounds.count >= bounds.most:
            raise ConfigurationError(
                f"{bounds.address} has {bounds.most:,} entries in its journal, the most that entity_workflow_max_steps "
                "allows: end it, or begin anew with flow.continue_as_new(...)"
            )
        bounds.count += 1
        entry = Entry(kind, name, at_epoch_s=now_epoch_s)
        self.entries.append(entry)
        return bounds.prefix + path, entry

    def branches(self, label: str, entry: Entry, number: int) -> list[Journal]:
        """The journals of the branches of a gather or a race, as many as it is called with now.

        Raises:
            NonDeterminism: It was called with another number of branches.
        """
        if entry.branches is None:
            entry.branches = [[] for _ in range(number)]
        path = label.removeprefix(self.bounds.prefix)
        if len(entry.branches) != number:
            raise self.bounds.diverged(
                f"position {path}: the {entry.kind} has {len(entry.branches)} branches, and the body gives {number}"
            )
        return [
            Journal(own, self.bounds, f"{path}.{at}.", is_over=self.is_over) for at, own in enumerate(entry.branches)
        ]

    def end(self) -> None:
        """The body, or the branch, has ended, in whatever way.

        Raises:
            NonDeterminism: It did something else than its journal says, now or before.
        """
        if self.bounds.divergence is not None:
            raise self.bounds.divergence
        if self.is_replaying and self.entries[self.position].kind != "undo":
            raise self._diverged(f"{self._path}{self.position}", self.entries[self.position], "the body ends")

    def _diverged(self, path: str, entry: Entry, what: str) -> NonDeterminism:
        return self.bounds.diverged(f"position {path}: the journal has {entry.described()}, and {what}")
