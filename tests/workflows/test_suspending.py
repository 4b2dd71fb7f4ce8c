"""Whatever a workflow waits for may happen while the turn that suspends it commits: it is woken all the same, by its
mail, and by no poll.

A drain is stopped before each of its statements in turn while the signal is completed, the answer comes, the child
ends, the time passes, or the workflow is cancelled. Wake-ups are noted, and answered by drains as pool slots would; no
sweep ever runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from entitycelery import Entity, Workflow, handler
from entitycelery.exceptions import WorkflowCancelled
from entitycelery.storage.sql.session import SqlDrainSession
from tests.storage.interleave import explore
from tests.storage.rings import SHARD, NotedRings, aside

SLEEP_S = 0.03


class Town(NotedRings):
    """A workflow that waits for one thing."""

    def __init__(self, url: str) -> None:
        super().__init__(url, drain_budget_s=60.0)

        @self.entities.register
        class Oracle(Entity):
            @handler
            def ask(self) -> str:
                self.expect("word", then=self.speak)
                return self.reply_later()

            @handler
            def speak(self, word: str) -> str:
                return word

        @self.entities.workflow
        def child(flow: Workflow) -> str:
            return flow.wait("word", str)

        @self.entities.workflow
        def waits(flow: Workflow, what: str) -> Any:
            if what == "signal":
                return flow.wait("word", str)
            if what == "answer":
                return flow.ask(Oracle.ref(flow.id).ask)
            if what == "child":
                return flow.child(child)
            if what == "race":
                return flow.race(lambda: flow.sleep(3600), lambda: flow.wait("word", str))[1]
            flow.sleep(SLEEP_S if what == "sleep" else 3600)
            return "word"

        self.oracle, self.child, self.waits = Oracle, child, waits

    def complete(self, what: str, key: str) -> None:
        """What the workflow waits for."""
        run = self.waits.ref(key)
        match what:
            case "signal" | "race":
                run.signal("word", "word")
            case "answer":
                self.entities.signal(self.oracle.ref(key), "word").succeed("word")
            case "child":
                self.child.ref(f"{key}/0").signal("word", "word")
            case "cancel":
                run.cancel()
            case "sleep":
                # Time passes.
                threading.Event().wait(SLEEP_S * 2)

    def wait_until_due(self) -> None:
        """As a runner does: sleep until the next moment at which mail is due, then have a drain run for it."""
        while True:
            moments = self.store.due_moments({SHARD: time.time() - 60})
            due_s = moments.next_epoch_s
            if not moments.due and (due_s is None or due_s > time.time() + 60):
                return
            if not moments.due:
                threading.Event().wait((due_s or 0.0) - moments.now_epoch_s)
            aside(self.drain)


@pytest.fixture
def town(store_url: str) -> Iterator[Town]:
    made = Town(store_url)
    yield made
    made.entities.close()


def forced(town: Town, what: str, check: Callable[[str], None]) -> int:
    """Force the race at each statement of the drain that suspends the workflow; how many there are."""

    def suspend(n: int) -> None:
        town.waits.options(key=f"k{n}").start(what)
        town.rings.clear()
        town.drain()

    def looked_at(n: int, mine: Any, others: Any) -> None:
        for result in (mine, others):
            if isinstance(result, Exception):
                raise result
        town.answer_rings()
        if what == "sleep":
            town.wait_until_due()
        check(f"k{n}")

    def complete(n: int) -> None:
        town.complete(what, f"k{n}")
        # The wake-up comes at once, while the first drain stands still.
        town.answer_rings()

    return explore(town.store, "drain", suspend, complete, looked_at)


@pytest.mark.parametrize("what", ["signal", "answer", "child", "race", "sleep"])
def test_a_workflow_is_woken_by_what_happens_while_it_suspends(town: Town, what: str) -> None:
    def check(key: str) -> None:
        assert town.waits.ref(key).result(timeout_s=0.01) == "word"

    assert forced(town, what, check) >= 8


def test_a_workflow_is_cancelled_while_it_suspends(town: Town) -> None:
    def check(key: str) -> None:
        with pytest.raises(WorkflowCancelled):
            town.waits.ref(key).result(timeout_s=0.01)

    assert forced(town, "cancel", check) >= 8


def test_a_drain_that_looks_before_it_releases_would_leave_a_workflow_asleep(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, release = SqlDrainSession.claim, SqlDrainSession.release
    kept = threading.local()
    asleep: list[str] = []

    def look(self: SqlDrainSession, limit: int) -> Any:
        found = claim(self, limit)
        if mailboxes := kept.__dict__.pop("mailboxes", None):
            release(self, mailboxes)
        return found

    def check(key: str) -> None:
        if town.waits.ref(key).status().ended_epoch_s is None:
            asleep.append(key)

    monkeypatch.setattr(SqlDrainSession, "claim", look)
    monkeypatch.setattr(SqlDrainSession, "release", lambda self, mailboxes: setattr(kept, "mailboxes", mailboxes))

    forced(town, "signal", check)

    assert asleep
