"""No message is stranded: whenever a sender left its wake-up out, or its wake-up found the entity claimed, some drain
looks once more.

Real drains at a real store; wake-ups are noted instead of sent, so that the test decides when one arrives. Each body
also runs with one rule broken, and must then find a message that nobody comes for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from entitycelery import Entity, handler
from entitycelery.address import ShardId
from entitycelery.message import NewMessage
from entitycelery.runtime import drain as drain_module
from entitycelery.runtime.drain import Drain
from entitycelery.storage.sql.session import SqlDrainSession
from entitycelery.transports.bell import Bell
from tests.storage.interleave import Party
from tests.storage.rings import SHARD, NotedRings, aside


class Town(NotedRings):
    """Entities whose handler does what the test has put in `during` for the note's text."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.during: dict[str, Callable[[], None]] = {}
        self.handled: list[str] = []
        town = self

        @self.entities.register
        class Box(Entity):
            @handler
            def note(self, text: str) -> None:
                town.during.get(text, lambda: None)()
                town.handled.append(text)

        self._box = Box

    def send(self, entity_id: str, text: str) -> bool:
        """Send a note as another process would, shortly after it has rung; whether it rings for it."""
        before = len(self.rings)
        self.bell._rang_at[SHARD] = time.monotonic()
        aside(lambda: self._box.ref(entity_id).note.send(text))
        return len(self.rings) > before

    def stranded(self) -> list[str]:
        """What is pending when every wake-up has been answered and every drain has ended."""
        self.answer_rings()
        return [pending.args for pending in self.store.pending(None, None, 100)]


@pytest.fixture
def town(store_url: str) -> Iterator[Town]:
    # However slow this machine is: a drain ends because it finds nothing more, not because its time is over.
    made = Town(store_url, drain_budget_s=60.0)
    yield made
    made.entities.close()


def once_before(holder: Any, method: str, act: Callable[[], None]) -> list[bool]:
    """Have `act` run right before the next call of a method, whoever calls it."""
    real = getattr(holder, method)
    acted: list[bool] = []

    def watched(*args: Any, **options: Any) -> Any:
        if not acted:
            acted.append(True)
            act()
        return real(*args, **options)

    setattr(holder, method, watched)
    return acted


# Release, then look


def mail_for_a_claimed_entity(town: Town) -> None:
    """Mail arrives for an entity just before its claim is released, and its wake-up finds it claimed."""

    def arrive() -> None:
        assert town.send("a", "late")
        town.answer_rings()
        assert town.handled == ["first"]

    town.send("a", "first")
    town.rings.clear()
    acted = once_before(town.store._locks, "release", arrive)
    aside(town.drain)
    assert acted


def test_mail_that_arrives_while_its_entity_is_claimed_is_found_after_the_release(town: Town) -> None:
    mail_for_a_claimed_entity(town)

    assert town.stranded() == []
    assert town.handled == ["first", "late"]


def test_a_drain_that_looks_before_it_releases_would_strand_mail(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, release = SqlDrainSession.claim, SqlDrainSession.release
    kept: list[Any] = []

    def look(self: SqlDrainSession, limit: int) -> Any:
        found = claim(self, limit)
        if kept:
            release(self, kept.pop())
        return found

    monkeypatch.setattr(SqlDrainSession, "claim", look)
    monkeypatch.setattr(SqlDrainSession, "release", lambda self, mailboxes: kept.append(mailboxes))

    mail_for_a_claimed_entity(town)

    assert len(town.stranded()) == 1


# Attention


def mail_at_the_end_of_attention(town: Town) -> None:
    """A sender finds its shard attended, by a drain that has looked already and is about to end."""

    def arrive() -> None:
        assert not town.send("a", "late")

    for n in range(10):
        town.send(f"e{n}", f"note {n}")
    town.rings.clear()
    acted = once_before(town.store._locks, "forsake", arrive)
    with pytest.MonkeyPatch.context() as patch:
        # However slow this machine is: no turn is long here.
        patch.setattr(drain_module, "LONG_TURN_S", 60.0)
        aside(town.drain)
    assert acted


def test_mail_whose_wakeup_was_left_out_is_found_by_the_last_look(town: Town) -> None:
    mail_at_the_end_of_attention(town)

    assert town.stranded() == []
    assert town.handled[-1] == "late"


def test_a_drain_that_does_not_look_after_its_attention_would_strand_mail(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    forsake = Drain._forsake
    monkeypatch.setattr(Drain, "_forsake", lambda self: forsake(self) and False)

    mail_at_the_end_of_attention(town)

    assert len(town.stranded()) == 1


def test_nobody_attends_a_shard_after_its_drain(town: Town) -> None:
    for n in range(10):
        town.send(f"e{n}", f"note {n}")

    aside(town.drain)

    assert town.send("a", "later")


# Long turns


def mail_behind_a_long_turn(town: Town) -> list[str]:
    """Mail for another entity while a turn runs long; what other slots have handled before that turn ends."""
    handled: list[str] = []

    def long() -> None:
        town.send("b", "behind")
        town.answer_rings()
        handled.extend(town.handled)

    town.during["long"] = long
    town.send("a", "long")
    town.rings.clear()
    aside(town.drain)
    return handled


def test_a_long_turn_holds_nobody_elses_mail_back(town: Town) -> None:
    assert mail_behind_a_long_turn(town) == ["behind"]


def test_leaving_wakeups_out_because_older_mail_is_pending_would_hold_mail_back(town: Town) -> None:
    def older_is_pending(shards: Sequence[ShardId]) -> set[ShardId]:
        return set(shards) if len(town.store.pending(None, SHARD, 2)) > 1 else set()

    def append_and_ask(message: NewMessage, *, nonce: str, flushed: bool = True) -> bool:
        town.store.append([message], nonce=nonce)
        return bool(older_is_pending([message.shard]))

    town.bell._attended = older_is_pending
    town.store.append_and_ask = append_and_ask  # type: ignore[method-assign]

    assert mail_behind_a_long_turn(town) == []


def long_turn_in_an_attended_shard(town: Town, give_back: Callable[[Drain], None]) -> list[str]:
    """A drain attends its shard; its first turn runs long; mail arrives just before it lets its attention go.

    Returns:
        What other slots have handled before that turn ends.
    """
    handled: list[str] = []
    gave_back = threading.Event()

    def given_back(drain: Drain) -> None:
        give_back(drain)
        gave_back.set()

    def long() -> None:
        assert gave_back.wait(30)
        handled.extend(town.handled)

    town.during["long"] = long
    town.send("a", "long")
    for n in range(9):
        town.send(f"e{n}", f"note {n}")
    town.rings.clear()
    town.on_ring = lambda: aside(town.drain)
    once_before(town.store._locks, "forsake", lambda: town.send("z", "late") and None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drain, "_give_back", given_back)
        aside(town.drain)
    town.on_ring = lambda: None
    return handled


GIVE_BACK = Drain._give_back


def silently(drain: Drain) -> None:
    """Broken: what was not begun is given back, and nobody is told."""
    bell = drain._host.bell
    drain._host.bell = Bell(SilentRinger(), lambda shards: set())
    GIVE_BACK(drain)
    drain._host.bell = bell


def ring_first(drain: Drain) -> None:
    """Broken: the wake-up goes out before the attention is dropped."""
    drain._host.bell.ring(drain._shards)
    silently(drain)


class SilentRinger:
    def ring(self, shards: Sequence[ShardId]) -> None:
        """Nobody hears."""


def test_a_turn_that_runs_long_lets_other_slots_serve_its_shard(town: Town) -> None:
    handled = long_turn_in_an_attended_shard(town, GIVE_BACK)

    assert sorted(handled) == ["late", *(f"note {n}" for n in range(9))]
    assert town.stranded() == []


@pytest.mark.parametrize("give_back", [silently, ring_first])
def test_a_long_turn_that_does_not_ring_last_would_hold_its_shard_back(
    town: Town, give_back: Callable[[Drain], None]
) -> None:
    assert "late" not in long_turn_in_an_attended_shard(town, give_back)


# Budget


def test_a_drain_that_stops_early_says_so(store_url: str) -> None:
    town = Town(store_url, drain_budget_s=0.000_001, batch_size=10)
    for n in range(25):
        town.send(f"e{n}", f"note {n}")

    said = [town.entities.host.drain(SHARD).more for _ in range(4)]

    assert said == [True, True, True, False]
    assert len(town.handled) == 25
    town.entities.close()


# All at once


def test_many_senders_and_drains_strand_nothing(town: Town) -> None:
    wakeups: queue.SimpleQueue[bool] = queue.SimpleQueue()
    town.on_ring = lambda: wakeups.put(True)

    def slot() -> None:
        while wakeups.get():
            town.drain()

    def sender(name: int) -> None:
        for n in range(40):
            town._box.ref(f"e{n % 7}").note.send(f"{name}.{n}")

    slots = [Party(slot) for _ in range(2)]
    senders = [Party(lambda name=name: sender(name)) for name in range(3)]
    for party in senders:
        party.join()
    for _ in slots:
        wakeups.put(False)
    for party in slots:
        party.join()
    # Rung by drains, after the last sender was done.
    while not wakeups.empty():
        wakeups.get()
        town.drain()

    assert town.store.pending(None, None, 10) == []
    assert sorted(town.handled) == sorted(f"{name}.{n}" for name in range(3) for n in range(40))
