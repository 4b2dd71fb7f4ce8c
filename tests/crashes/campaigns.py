"""A campaign: rounds of load on one site, in which processes die at one point after the other."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.celery.workers import Worker
from tests.crashes.rounds import Round
from tests.crashes.sites import Site
from tests.waiting import eventually

# A death that leaves messages in flight: behind it come the points of the recovery.
PRELUDE = "after call write"
_ROUNDS_TO_RECORD = 4
_TRIES = 6


class Campaign:
    """Finds the points of a drain, and has somebody die at each of them.

    At most two processes die in a round, so no message can be taken for one that kills its process.
    """

    def __init__(self, site: Site, worker: Worker, *, deaths_in_a_round: int = 2) -> None:
        self._site = site
        self._worker = worker
        self._deaths_in_a_round = deaths_in_a_round
        self._rounds = 0
        self._ready_at_s = 0.0
        self._undisturbed: set[str] = set()
        self.waits_s: list[float] = []
        self.missed: list[str] = []

    def record(self, *, recovery: bool = True) -> list[str]:
        """The points of undisturbed drains, and of those that follow a death."""
        for _ in range(_ROUNDS_TO_RECORD):
            self._round([])
        self._undisturbed = set(self._site.seen())
        for _ in range(_ROUNDS_TO_RECORD if recovery else 0):
            self._round([PRELUDE])
        return self._site.seen()

    def die_at(self, points: Iterable[str]) -> None:
        """Have somebody die at each point; those that nobody came by in many rounds are `missed`."""
        left = deque(points)
        tried: Counter[str] = Counter()
        while left:
            plan = self._next_plan(left, tried)
            died = self._round(plan)
            for point in plan[died:]:
                tried[point] += 1
                if tried[point] < _TRIES:
                    left.append(point)
                elif point != PRELUDE:
                    self.missed.append(point)

    def _next_plan(self, left: deque[str], tried: Counter[str]) -> list[str]:
        first = left.popleft()
        is_of_recovery = first not in self._undisturbed
        # What was not come by is tried in both ways.
        if self._deaths_in_a_round > 1 and is_of_recovery != bool(tried[first] % 2):
            return [PRELUDE, first]
        return [first, *([left.popleft()] if left and self._deaths_in_a_round > 1 and not tried[first] else [])]

    def _round(self, plan: list[str]) -> int:
        """One round; how many of the planned deaths came about."""
        site = self._site
        self._rounds += 1
        load = Round(site, self._rounds)
        before = len(site.deaths())
        site.plan(plan)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(load.send)
            eventually(lambda: self._is_worker_there() and sending.done() and site.pending() == 0, timeout_s=60)
            sending.result()
        died = len(plan) - site.call_off()
        eventually(lambda: self._is_worker_there() and site.pending() == 0)
        site.await_nothing_held()
        ended_s = load.check()
        deaths = site.deaths()[before:]
        if deaths:
            self.waits_s.append(ended_s - max(deaths[-1].at_s, self._ready_at_s))
        return died

    def _is_worker_there(self) -> bool:
        """Whether it lives; one that died with its whole tree is started again."""
        if self._worker.process.poll() is None:
            return True
        self._worker = self._site.worker(with_its_tree=True)
        self._ready_at_s = time.time()
        return False
