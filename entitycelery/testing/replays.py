"""`WorkflowTestEnvironment`: every body is run again at every suspension, and must do the same."""

from __future__ import annotations

import copy
from typing import Any, Self

from entitycelery import codec
from entitycelery.durable.body import Body, Run
from entitycelery.durable.cursor import Watcher
from entitycelery.durable.journal import ContinuedAsNew, Suspended
from entitycelery.exceptions import NonDeterminism, SerializationFailed
from entitycelery.testing.environment import EntityTestEnvironment


class WorkflowTestEnvironment(EntityTestEnvironment):
    """An environment that finds out bodies that are not deterministic.

    Whenever a body waits or ends it is run once more, against what its journal has and without doing anything. It must
    make the same calls with the same arguments, and come to the same end: so it must not read clocks, random numbers,
    files or variables that change, but in a step. `run`, `skip`, `result` and `ask` raise NonDeterminism where it does
    not.
    """

    def __enter__(self) -> Self:
        self._replays = _Replays()
        self._before, Body.inspector = Body.inspector, self._replays
        return super().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        Body.inspector = self._before
        super().__exit__(*exc_info)

    def step(self) -> bool:
        ran = super().step()
        if self._replays.found is not None:
            found, self._replays.found = self._replays.found, None
            raise found
        return ran


class _Replays:
    """Runs every run again."""

    def __init__(self) -> None:
        self.found: NonDeterminism | None = None
        self._arguments: dict[tuple[str, str], bytes] = {}

    def watcher(self, run: Run) -> Watcher:
        return _Arguments(run.address, self)

    async def ran(self, body: Body, run: Run, ended: Any) -> None:
        again = run._replace(journal=copy.deepcopy(run.journal), versions=dict(run.versions))
        core = body.core(again, is_over=True)
        try:
            outcome: Any = await body.call(again, core)
        except (Suspended, ContinuedAsNew, Exception) as exc:  # noqa: BLE001 - the user's body
            outcome = exc
        if isinstance(outcome, NonDeterminism) and not isinstance(ended, NonDeterminism):
            self.report(str(outcome))
        elif (first := _told(ended)) != (second := _told(outcome)):
            self.report(f"{run.address}: the body {first}, and {second} when it was run again")

    def compare(self, address: str, label: str, what: str, arguments: bytes) -> None:
        """The arguments of a call must be those of its first time."""
        first = self._arguments.setdefault((address, label), arguments)
        if first != arguments:
            self.report(
                f"{address}, position {label}: {what} was called with {first.decode()}, and with {arguments.decode()} "
                "when the body was run again"
            )

    def report(self, sentence: str) -> None:
        """Keep the first finding."""
        self.found = self.found or NonDeterminism(sentence)


class _Arguments:
    """Compares the arguments of the calls of one workflow."""

    def __init__(self, address: str, replays: _Replays) -> None:
        self._address = address
        self._replays = replays

    def called(self, label: str, what: str, arguments: tuple[Any, ...]) -> None:
        try:
            written = codec.to_canonical_json(arguments, "arguments")
        except SerializationFailed:
            # Objects of a process, which cannot be compared.
            return
        self._replays.compare(self._address, label, what, written)


def _told(ended: Any) -> str:
    """How a run ended, in words that are the same if it ended the same way."""
    if isinstance(ended, Suspended):
        return "waits"
    if isinstance(ended, ContinuedAsNew):
        return f"begins anew with {ended.arguments}"
    if isinstance(ended, Exception):
        return f"raises {type(ended).__name__}: {ended}"
    return f"returns {codec.to_canonical_json(ended, 'the result').decode()}"
