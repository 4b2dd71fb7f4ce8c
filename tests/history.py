"""What clients saw, and whether any order of turns explains it.

Clients write down every call before they make it and its answer after it came; a client that is killed leaves calls
without an answer. Every entity keeps an append-only list of the entries written to it. The checks are pure: history
and lists in, sentences about what cannot be out.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["ask", "send", "read"]
Outcome = Literal["ok", "unknown", "failed"]
Lists = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One call of a client to one entity. Times are CLOCK_MONOTONIC of one machine."""

    entry: str
    """What it writes, its identity; of a read only the identity."""
    client: str
    kind: Kind
    entity: str
    invoked_s: float
    returned_s: float = math.inf
    """When the client had its answer; infinite if it never had one."""
    outcome: Outcome = "unknown"
    answer: int | None = None
    """The position of the entry; of a read the length of the list."""
    passed_to: str | None = None
    """Where the turn sends the entry on, in its own commit."""
    error: str | None = None
    message_id: str | None = None

    @property
    def passed_entry(self) -> str:
        """What the receiver of the turn's outgoing send writes."""
        return passed(self.entry)

    @property
    def effect_by_s(self) -> float:
        """When its effect must have been there: an answered ask's has, a stored send's may take for ever."""
        return self.returned_s if self.outcome == "ok" and self.kind == "ask" else math.inf


def passed(entry: str) -> str:
    """The entry as its first receiver sends it on."""
    return f"{entry}>"


class Recorder:
    """One client's pen: every line is in the file before the client goes on, whatever kills it then."""

    def __init__(self, path: Path, client: str) -> None:
        self._client = client
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def invoke(self, entry: str, kind: Kind, entity: str, passed_to: str | None = None) -> None:
        call = {"entry": entry, "client": self._client, "kind": kind, "entity": entity, "passed_to": passed_to}
        self._write({**call, "invoked_s": time.monotonic()})

    def answer(self, entry: str, outcome: Outcome, **seen: Any) -> None:
        self._write({"entry": entry, "outcome": outcome, "returned_s": time.monotonic(), **seen})

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read_history(paths: Iterable[Path]) -> list[Operation]:
    """The operations of all clients; a line that its writer could not finish is the end of that file."""
    operations: dict[str, Operation] = {}
    for path in paths:
        for line in path.read_text().split("\n")[:-1]:
            fields = json.loads(line)
            known = operations.get(fields["entry"])
            operations[fields["entry"]] = replace(known, **fields) if known else Operation(**fields)
    return sorted(operations.values(), key=lambda operation: operation.invoked_s)


def violations(history: Sequence[Operation], lists: Lists) -> list[str]:
    """Everything that cannot be, by every check."""
    return [f"{check.__name__}: {sentence}" for check in CHECKS for sentence in check(history, lists)]


def exactly_once(history: Sequence[Operation], lists: Lists) -> list[str]:
    """Stored: there once. Unknown: at most once. Refused: not there. Never called: not there."""
    found = Counter((entity, entry) for entity, entries in lists.items() for entry in entries)
    wrong: list[str] = []
    for operation in _writes(history):
        times = found.pop((operation.entity, operation.entry), 0)
        allowed = {"ok": (1,), "unknown": (0, 1), "failed": (0,)}[operation.outcome]
        if times not in allowed:
            wrong.append(f"{operation.entity} has {operation.entry} ({operation.outcome}) {times} times")
        if operation.passed_to:
            # How often is for `atomic_with_its_sends` to say.
            found.pop((operation.passed_to, operation.passed_entry), None)
    return wrong + [f"{entity} has {entry}, which nobody sent there" for entity, entry in found]


def answers_are_positions(history: Sequence[Operation], lists: Lists) -> list[str]:
    """An ask's answer is where its entry stands, however often the ask was repeated under its key."""
    return [
        f"{op.entity} answered {op.answer} to {op.entry}, which is at {position}"
        for op in _writes(history)
        if op.kind == "ask" and op.outcome == "ok"
        and (position := _position(lists, op.entity, op.entry)) != op.answer
    ]  # fmt: skip


def linearizable(history: Sequence[Operation], lists: Lists) -> list[str]:
    """Of two operations on an entity, the one that had its answer before the other was called comes first."""
    wrong: list[str] = []
    by_entity: dict[str, list[tuple[float, Operation]]] = defaultdict(list)
    places = {entity: {entry: place for place, entry in enumerate(entries)} for entity, entries in lists.items()}
    for operation in history:
        place = _place(operation, places.get(operation.entity, {}))
        if place is not None:
            by_entity[operation.entity].append((place, operation))
    for entity, placed in by_entity.items():
        latest: Operation | None = None
        for _, operation in sorted(placed, key=lambda pair: (pair[0], pair[1].invoked_s)):
            if latest and _known_by_s(operation) < latest.invoked_s:
                wrong.append(
                    f"{entity}: {operation.entry} was answered at {_known_by_s(operation):.3f} and stands behind "
                    f"{latest.entry}, which was called at {latest.invoked_s:.3f}"
                )
            if latest is None or operation.invoked_s > latest.invoked_s:
                latest = operation
    return wrong


def in_senders_order(history: Sequence[Operation], lists: Lists) -> list[str]:
    """What one client wrote to one entity stands in the order in which its sends returned."""
    wrong: list[str] = []
    sent: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for operation in _writes(history):
        # An unknown one may have been stored behind later ones: no send of it ever returned.
        if operation.outcome == "ok":
            sent[operation.client, operation.entity].append(operation)
    for (client, entity), operations in sent.items():
        order = {operation.entry: place for place, operation in enumerate(operations)}
        written = [entry for entry in lists.get(entity, ()) if entry in order]
        for before, after in itertools.pairwise(written):
            if order[before] > order[after]:
                wrong.append(f"{entity} has {before} before {after}, which {client} sent earlier")
    return wrong


def atomic_with_its_sends(history: Sequence[Operation], lists: Lists) -> list[str]:
    """A turn and what it sends are there together, once, and what one entity sends to another keeps its order."""
    wrong: list[str] = []
    routes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for operation in _writes(history):
        if not operation.passed_to:
            continue
        turns = lists.get(operation.entity, ()).count(operation.entry)
        sends = lists.get(operation.passed_to, ()).count(operation.passed_entry)
        if turns != sends:
            wrong.append(
                f"{operation.entity} has {operation.entry} {turns} times, {operation.passed_to} its send {sends}"
            )
        routes[operation.entity, operation.passed_to].append(operation.entry)
    for (source, target), entries in routes.items():
        wanted = set(entries)
        turned = [passed(entry) for entry in lists.get(source, ()) if entry in wanted]
        arrived = [entry for entry in lists.get(target, ()) if entry in set(map(passed, wanted))]
        if sorted(turned) == sorted(arrived) and turned != arrived:
            wrong.append(f"{target} has what {source} sent in another order than that of its turns")
    return wrong


CHECKS: Sequence[Callable[[Sequence[Operation], Lists], list[str]]] = (
    exactly_once,
    answers_are_positions,
    linearizable,
    in_senders_order,
    atomic_with_its_sends,
)


def _writes(history: Sequence[Operation]) -> list[Operation]:
    return [operation for operation in history if operation.kind != "read"]


def _position(lists: Lists, entity: str, entry: str) -> int | None:
    entries = lists.get(entity, ())
    return entries.index(entry) if entry in entries else None


def _place(operation: Operation, places: Mapping[str, int]) -> float | None:
    """Where an operation stands among those of its entity; a read stands behind the last entry that it saw."""
    if operation.kind == "read":
        return operation.answer - 0.5 if operation.outcome == "ok" and operation.answer is not None else None
    return places.get(operation.entry)


def _known_by_s(operation: Operation) -> float:
    return operation.returned_s if operation.kind == "read" else operation.effect_by_s
