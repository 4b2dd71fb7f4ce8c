"""A sender dies at every point of every way to send in turn: what it sent is there once or not at all, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.celery.workers import ROOT
from tests.crashes.sites import Site, open_site
from tests.crashes.steps import SENDER, STEPS, Step
from tests.services import Services
from tests.storage.support import query

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

NAMED = (
    "a first send: append, Messages._append_plain: INSERT message",
    "a first send: ring",
    "a send soon after: append_and_ask, ",
    "a keyed send: append, Sends._all_or_nothing: BEGIN",
    "a keyed send: append, Messages._append_keyed: INSERT message",
    "a keyed send: append, Messages._append_keyed: DELETE message",
    "a keyed send: append, Messages._append_keyed: SELECT message",
    "a keyed send: append, Sends._all_or_nothing: COMMIT",
    "a keyed send repeated: append, Sends._all_or_nothing: COMMIT",
    "many: append, Messages._append_plain: INSERT message",
    "many with keys: append, Messages._append_keyed: INSERT message",
    "in a transaction: append, Messages._append_plain: INSERT message",
    "in a transaction: the sender's own commit",
    "with a key in a transaction: append, Messages._append_keyed: SELECT message",
    "with a key in a transaction: the sender's own commit",
    "rolled back: the sender's own rollback",
    "with a delay: append, Messages._append_keyed: INSERT message",
    "with a key that is a mutex: append_unique, UniqueKeys._taken_rows: INSERT unique_key",
    "with a key that is a mutex: append_unique, UniqueKeys._decide: SELECT",
    "with a key that is a mutex: append_unique, Messages._append_plain: INSERT message",
    "with a key that is a mutex: append_unique, Sends._all_or_nothing: COMMIT",
)


class Sender:
    """The sending program."""

    def __init__(self, site: Site) -> None:
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashes.sender"],
            env={**os.environ, **site.environment(), "PYTHONPATH": paths},
            cwd=site.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(self, name: str) -> int:
        """One life; its exit status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate(timeout=30)


@contextmanager
def sender_of(site: Site) -> Iterator[Sender]:
    sender = Sender(site)
    try:
        yield sender
    finally:
        sender.end()


class Story:
    """What one round's ledger must say."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self._name = name
        told = (site.crashes / f"sent-{name}").read_text().splitlines()
        self._known = [line.partition(" ")[0] == "sent" for line in told]
        assert len(told) == len(STEPS)

    def check(self) -> None:
        entries = self._site.entities.state(self._site.Ledger.ref(self._name)).entries
        written = [number for sender, number in entries if sender == SENDER]
        rows = query(self._site.store, f"SELECT number FROM paid WHERE ledger = '{self._name}'")  # noqa: S608
        paid = sorted(number for (number,) in rows)
        for step, is_known in zip(STEPS, self._known, strict=True):
            self._check_step(step, is_known, written, paid)
        assert len(set(written)) == len(written), f"doubled: {written}"
        ordered = [n for step in STEPS if step.in_order and step.leaves for n in step.numbers]
        assert [n for n in ordered if n in written] == [n for n in written if n in ordered], f"reordered: {written}"

    def _check_step(self, step: Step, is_known: bool, written: list[int], paid: list[int]) -> None:
        stored = [number for number in step.numbers if number in written]
        if step.pays:
            assert paid.count(step.numbers[0]) == len(stored), f"{step.name}: a row without a message, or the reverse"
        if not step.leaves and not step.again:
            assert stored == [], step.name
        elif is_known:
            assert stored == step.numbers, f"{step.name}: lost"
        else:
            assert stored in ([], step.numbers), f"{step.name}: half of it"


class Campaign:
    """Rounds of sending on one site."""

    def __init__(self, site: Site, sender: Sender) -> None:
        self._site = site
        self._sender = sender
        self._rounds = 0

    def round(self, point: str | None = None) -> bool:
        """Send everything, dying at this point on the way; whether that happened."""
        self._rounds += 1
        name = f"r{self._rounds}"
        self._site.plan([point] if point else [])
        status = self._sender.live(name)
        has_died = status == -signal.SIGKILL
        self._site.call_off()
        if has_died:
            if self._rounds % 2:
                # Whether or not it still rang, and though nobody sends to that shard again.
                self._site.await_quiet()
            status = self._sender.live(name)
        assert status == 0, "it says why on the standard error output"
        self._site.await_quiet()
        Story(self._site, name).check()
        return has_died


@pytest.mark.parametrize(
    ("store", "every"),
    [("postgresql", 1), ("sqlite", 5), pytest.param("sqlite", 1, marks=pytest.mark.chaos_long)],
)
def test_death_of_a_sender_at_any_point_loses_doubles_and_reorders_nothing(
    services: Services, tmp_path: Path, store: str, every: int
) -> None:
    with open_site(services, tmp_path / "site", store) as site, sender_of(site) as sender:
        site.worker("-P", "threads", "-c", "2", mortal=False)
        campaign = Campaign(site, sender)
        assert [campaign.round() for _ in range(3)] == [False] * 3
        points = site.seen()

        missed = [p for p in points[::every] if not campaign.round(p) and not campaign.round(p)]

        # Whether it rings hangs on whether a drain looks just then; the thread that rings later knows no step.
        # Nor does an ask read its reply where that was announced whole.
        by_chance = (" ring", "Replies.read: SELECT finished_at")
        assert [point for point in missed if not point.endswith(by_chance)] == []
        assert [name for name in NAMED for which in ("before", "after") if not _is_among(which, name, points)] == []
        site.await_nothing_held()


def _is_among(which: str, name: str, points: list[str]) -> bool:
    return any(point.startswith(f"{which} {name}") for point in points)
