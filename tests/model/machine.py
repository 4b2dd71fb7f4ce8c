"""The rules of the model test: what senders, drains, crashes and the clock do, in any order that hypothesis finds."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from sqlalchemy import NullPool, create_engine

from entitycelery import EntityCelery
from entitycelery.exceptions import KeyConflict, MailboxFull
from tests.client.support import time_passes
from tests.model.drains import Sleeper, drain, drain_in_dying_process
from tests.model.entities import (
    ADDRESSES,
    FORWARDED_TO,
    HOUR_S,
    MAX_RETRIES,
    SHARDS,
    Book,
    Call,
    Close,
    Delete,
    Fail,
    Flaky,
    Forward,
    Note,
    Send,
    make_empty,
    make_ledgers,
)
from tests.model.model import Model
from tests.model.tables import check_tables, locks
from tests.model.witness import Witness
from tests.storage.support import query
from tests.waiting import eventually

_TEXTS = st.sampled_from(["x", "y"])
_KEYS = st.sampled_from([None, "k"])
_SHARDS = st.sampled_from([(0, 1), (0,), (1,)])
_MOST_SLEEPERS = 2

CALLS: st.SearchStrategy[Call] = st.one_of(
    st.builds(Note, _TEXTS),
    st.builds(Fail, _TEXTS),
    st.builds(Flaky, _TEXTS, st.integers(1, MAX_RETRIES + 1)),
    st.builds(Forward, _TEXTS, st.sampled_from(FORWARDED_TO), st.none()),
    st.builds(Forward, _TEXTS, st.sampled_from(FORWARDED_TO), st.just("k")),
    st.builds(Book, _TEXTS),
    st.builds(Close),
)
SENDS = st.builds(
    Send,
    st.sampled_from(ADDRESSES),
    CALLS,
    key=_KEYS,
    due_in_h=st.sampled_from([None, None, None, -1, 1, 2]),
    expires_in_h=st.sampled_from([None, None, None, 0, 1]),
)

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"


class EntityMachine(RuleBasedStateMachine):
    """One script: a store, an app, and whoever works on it."""

    messages: Bundle[str] = Bundle("messages")

    def __init__(self, url: str, cluster: str) -> None:
        super().__init__()
        self._url = url
        self._cluster = cluster
        self._model = Model()
        self._witness = Witness()
        self._sleepers: list[Sleeper] = []
        self._steps_since_start = 0
        self._open = contextlib.ExitStack()
        self._open.enter_context(self._witness.watching())
        self._entities: EntityCelery | None = None
        self._make: Callable[[], EntityCelery] = lambda: make_ledgers(url, cluster)

    @property
    def entities(self) -> EntityCelery:
        assert self._entities is not None
        return self._entities

    @property
    def _is_in_memory(self) -> bool:
        return self._url == "sqlite://"

    @initialize(batch_size=st.sampled_from([200, 3, 1]), commits_each_turn=st.booleans())
    def starts(self, batch_size: int, commits_each_turn: bool) -> None:
        self._make = lambda: make_ledgers(
            self._url, self._cluster, batch_size=batch_size, commits_each_turn=commits_each_turn
        )
        self._entities = self._make()
        make_empty(self._entities)

    # Senders

    @rule(target=messages, send=SENDS)
    def sends(self, send: Send) -> Any:
        return self._stored([send], lambda: [send.prepared(self.entities).send(**send.arguments).id])

    @rule(target=messages, sends=st.lists(SENDS, min_size=2, max_size=4))
    def sends_many(self, sends: list[Send]) -> Any:
        prepared = [send.prepared(self.entities).prepare(**send.arguments) for send in sends]
        return self._stored(sends, lambda: [sent.id for sent in self.entities.send_many(prepared)])

    def _stored(self, sends: list[Send], act: Callable[[], list[str]]) -> Any:
        """Store all these in one go, or see them refused for a reason that the model knows."""
        refusals = self._model.becomes_of_all(sends)
        if refusals:
            with pytest.raises((KeyConflict, MailboxFull)) as refused:
                act()
            assert refused.value.reason in refusals
            return multiple()
        ids = act()
        for send, message_id in zip(sends, ids, strict=True):
            self._model.sent(send, message_id)
        return multiple(*dict.fromkeys(ids))

    @rule(target=messages, to=st.sampled_from(ADDRESSES))
    def deletes(self, to: str) -> Any:
        return self._stored([Send(to, Delete())], lambda: [self.entities.delete(self.entities.ref(to)).id])

    @precondition(lambda self: not self._is_in_memory)
    @rule(sends=st.lists(SENDS, min_size=1, max_size=3), commits=st.booleans())
    def sends_in_own_transaction(self, sends: list[Send], commits: bool) -> None:
        engine = create_engine(self.entities.store.url, poolclass=NullPool)
        before = copy.deepcopy(self._model)
        with engine.connect() as conn:
            for send in sends:
                self._stored([send], functools.partial(self._sent_on, conn, send))
            if commits:
                conn.commit()
            else:
                conn.rollback()
        if not commits:
            self._model = before

    def _sent_on(self, conn: Any, send: Send) -> list[str]:
        return [send.prepared(self.entities, connection=conn).send(**send.arguments).id]

    # Whoever changes what was sent

    @rule(message=messages)
    def cancels(self, message: str) -> None:
        assert self.entities.cancel(message).outcome == self._model.cancelled(message)

    @rule(message=messages, due_in_h=st.integers(0, 2))
    def reschedules(self, message: str, due_in_h: int) -> None:
        change = self.entities.reschedule(message, delay_s=due_in_h * HOUR_S)
        assert change.outcome == self._model.rescheduled(message, due_in_h)

    @precondition(lambda self: self._sleepers)
    @rule(which=st.integers(0, _MOST_SLEEPERS - 1), due_in_h=st.integers(0, 1))
    def reschedules_what_sleeper_has_read(self, which: int, due_in_h: int) -> None:
        sleeper = self._sleeper(which).drain
        mail = [
            message for (holder, _), claim in self._model.claims.items() if holder == sleeper for message in claim.mail
        ]
        for message in mail[:1]:
            self.reschedules(message, due_in_h)

    @precondition(lambda self: self._model.dead_letters)
    @rule(message=messages)
    def retries_dead_letter(self, message: str) -> None:
        assert self.entities.retry_dead(message) == self._model.dead_letter_retried(message)

    @precondition(lambda self: self._model.dead_letters)
    @rule(message=messages)
    def discards_dead_letter(self, message: str) -> None:
        assert self.entities.discard_dead(message) == self._model.dead_letter_discarded(message)

    # Drains

    @rule(shards=_SHARDS)
    def drain(self, shards: tuple[int, ...]) -> None:
        drain(self.entities, shards)
        self._follow(shards)

    @precondition(lambda self: len(self._sleepers) < _MOST_SLEEPERS)
    @rule(shards=_SHARDS, stops=st.sampled_from(["before commit", "after claim"]), number=st.integers(1, 2))
    def drain_falls_asleep(self, shards: tuple[int, ...], stops: str, number: int) -> None:
        sleeper = Sleeper(self.entities, self._witness, shards, stops, number)
        if sleeper.is_asleep:
            self._sleepers.append(sleeper)
        self._follow(() if sleeper.is_asleep else shards)

    @precondition(lambda self: self._sleepers)
    @rule(which=st.integers(0, _MOST_SLEEPERS - 1))
    def sleeper_loses_its_claims(self, which: int) -> None:
        sleeper = self._sleeper(which)
        session = self._witness.sessions[str(sleeper.drain)]
        session._locks.release_all(session._conn, session._token)
        self._model.lost_claims(session._token)

    @precondition(lambda self: self._sleepers)
    @rule(which=st.integers(0, _MOST_SLEEPERS - 1))
    def sleeper_wakes_up(self, which: int) -> None:
        sleeper = self._sleeper(which)
        self._sleepers.remove(sleeper)
        sleeper.wake()
        self._follow(())

    def _sleeper(self, which: int) -> Sleeper:
        return self._sleepers[which % len(self._sleepers)]

    @precondition(lambda self: not self._is_in_memory)
    @rule(
        shards=_SHARDS,
        at=st.sampled_from(["after claim", "in turn", "before commit", "after commit"]),
        number=st.integers(1, 2),
    )
    def process_dies(self, shards: tuple[int, ...], at: str, number: int) -> None:
        backends = self._backends()
        events, died = drain_in_dying_process(self._make, self._witness, shards, at, number)
        eventually(lambda: self._backends() <= backends)
        self._model.follow(events)
        for dead in {event.drain for event in events}:
            self._model.died(dead)
        if not died:
            self._follow(shards)

    def _backends(self) -> set[int]:
        if self.entities.store.dialect.name == "sqlite":
            return set()
        return {row[0] for row in query(self.entities.store, _BACKENDS)}

    def _follow(self, drained: tuple[int, ...]) -> None:
        """See what drains did; of the shards that were drained to the end nothing is left that could run."""
        self._model.follow(self._witness.take())
        shard = self.entities.envelope.shard
        left = [m for m in self._model.left_over() if shard(self.entities.ref(m.send.to)._address).number in drained]
        assert not left, f"left over: {left}"

    # The rest of the world

    @rule(hours=st.integers(1, 2))
    def time_passes(self, hours: int) -> None:
        time_passes(self.entities, hours * HOUR_S)
        self._model.now_h += hours

    # Replies are kept for longer than any drain sleeps.
    @precondition(lambda self: not self._sleepers)
    @rule(older_than_h=st.integers(0, 2))
    def old_replies_are_purged(self, older_than_h: int) -> None:
        self.entities.store.purge_replies(older_than_h * HOUR_S, 1000)
        self._model.purged(older_than_h)

    @precondition(lambda self: not self._is_in_memory and not self._sleepers and self._steps_since_start > 3)
    @rule()
    def app_restarts(self) -> None:
        self.entities.close()
        self._entities = self._make()
        self._steps_since_start = 0

    # What holds after every step

    @invariant()
    def tables_are_as_in_the_model(self) -> None:
        self._steps_since_start += 1
        if self._entities is not None:
            check_tables(self._entities, self._model)

    @invariant()
    def no_lock_is_left(self) -> None:
        if self._entities is not None and not self._sleepers:
            assert not locks(self._entities)

    def check_invariants(self, settings: Any, output: Any, *rest: Any) -> None:
        """As ever, but a script shows what was done and not that it was checked."""
        super().check_invariants(settings, lambda _: None, *rest)  # type: ignore[no-untyped-call]

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and self._entities is not None:
                self._settles()
        finally:
            for sleeper in self._sleepers:
                sleeper.abandon()
            self._open.close()
            if self._entities is not None:
                self._entities.close()

    def _settles(self) -> None:
        """Whoever sleeps wakes up, and whatever can run has run."""
        while self._sleepers:
            self.sleeper_wakes_up(0)
        while self._model.left_over():
            self.drain(tuple(range(SHARDS)))
        self.tables_are_as_in_the_model()
        self.no_lock_is_left()
