"""How many asks were answered, and when: throughput before a fault and after it."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence

from tests.history import Operation

WINDOW_S = 2.0
_STEP_S = 0.1


class Rates:
    """Answered asks per second, by the clients' own clocks."""

    def __init__(self, history: Sequence[Operation]) -> None:
        self._answers_s = sorted(op.returned_s for op in history if op.kind == "ask" and op.outcome == "ok")

    def between(self, begin_s: float, end_s: float) -> float:
        """Answers per second."""
        return (bisect_left(self._answers_s, end_s) - bisect_left(self._answers_s, begin_s)) / (end_s - begin_s)

    def back_after_s(self, fault_s: float, *, rate: float, within_s: float) -> float | None:
        """How long after `fault_s` the first window of two seconds begins that reaches the rate; None: none does."""
        for step in range(round(within_s / _STEP_S)):
            begin_s = fault_s + step * _STEP_S
            if self.between(begin_s, begin_s + WINDOW_S) >= rate:
                return begin_s - fault_s
        return None

    def longest_silence_s(self, begin_s: float, end_s: float) -> float:
        """The longest time without any answer."""
        inside = [begin_s, *(at_s for at_s in self._answers_s if begin_s < at_s < end_s), end_s]
        return max(after - before for before, after in itertools.pairwise(inside))
