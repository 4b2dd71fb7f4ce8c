"""Two parties at one store, interleaved on purpose: one stops right before a statement while the other runs.

`explore` tries every place: with one preemption, and with no luck needed, it finds what a stress test finds rarely.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from entitycelery.exceptions import StoreUnavailable
from entitycelery.message import EntityCommit
from entitycelery.storage.sql import statement as statement_module
from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.dialects.base import Role
from entitycelery.storage.sql.statement import Statement
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import query
from tests.waiting import eventually

_BLOCKED = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


class Party:
    """Somebody who works at a store in a thread of its own. Keeps what came of it."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self.result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._act()
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            self.error = exc

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> Any:
        """Its result.

        Raises:
            Exception: Whatever ended it.
        """
        self._thread.join(30)
        assert self.is_done, "it hangs"
        if self.error is not None:
            raise self.error
        return self.result

    def until_done_or_blocked(self, store: SqlStore) -> None:
        """Wait until it has finished or can go on only when somebody else does."""
        if store.dialect.name == "sqlite":
            # Nothing tells who waits for SQLite's write lock.
            self._thread.join(0.03)
            return
        eventually(lambda: self.is_done or blocked(store) > 0, every_s=0.002)


def blocked(store: SqlStore) -> int:
    """How many sessions of this PostgreSQL database wait for a lock."""
    return int(query(store, _BLOCKED)[0][0])


@contextmanager
def before(store: SqlStore, role: Role, act: Callable[[str], None]) -> Iterator[None]:
    """Have `act` see every statement that this thread sends to `store`, before it goes.

    What `act` itself sends is not shown to it.
    """
    thread = threading.get_ident()
    engine = store.engines.of(role)
    acting: list[bool] = []
    execute = statement_module._execute

    def watched(conn: Connection, sent: str, params: Any) -> Any:
        if threading.get_ident() == thread and conn.engine is engine and not acting and not sent.startswith("PREPARE "):
            acting.append(True)
            try:
                act(sent)
            finally:
                acting.pop()
        return execute(conn, sent, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statement_module, "_execute", watched)
        yield


@contextmanager
def before_first(store: SqlStore, role: Role, statement: str, act: Callable[[], object]) -> Iterator[None]:
    """Have `act` run once, right before this thread sends `statement` for the first time."""
    acted: list[bool] = []

    def on_statement(sent: str) -> None:
        if not acted and is_sent(statement, sent):
            acted.append(True)
            act()

    with before(store, role, on_statement):
        yield
    assert acted, f"never sent: {statement}"


def is_sent(statement: str, sent: str) -> bool:
    """Whether `sent` runs `statement`, prepared or not."""
    name = getattr(statement, "name", "")
    return statement in sent or bool(name and f"EXECUTE {name}" in sent)


def explore(
    store: SqlStore,
    role: Role,
    first: Callable[[int], Any],
    second: Callable[[int], Any],
    check: Callable[[int, Any, Any], None],
) -> int:
    """Run `first`, stopped once before its statement n while `second` runs, for every n; return how many there are.

    Both get n, and so does `check`, with the two results. An error of the store is a result too.
    """
    for n in range(100):
        others: list[Party] = []
        sent = 0

        def on_statement(_: str, n: int = n, others: list[Party] = others) -> None:
            nonlocal sent
            if sent == n:
                others.append(Party(lambda: _outcome(second, n)))
                others[0].until_done_or_blocked(store)
            sent += 1

        with before(store, role, on_statement):
            mine = _outcome(first, n)
        if not others:
            return n
        check(n, mine, others[0].join())
    raise AssertionError("it never ends")


def _outcome(act: Callable[[int], Any], n: int) -> Any:
    try:
        return act(n)
    except StoreUnavailable as exc:
        return exc


class Careful(Commits):
    """The careful way of committing, always: its statements go one by one, so that others can get between them."""

    def is_plain(self, commits: Sequence[EntityCommit]) -> bool:
        return False


def commits_by(store: SqlStore, kind: type[Commits]) -> None:
    """Have the drains of `store` commit in this way."""
    store._commits = kind(
        *(store.dialect, store._messages, store._unique_keys, store._states, store._replies, store._in_flight),
        *(store._moments, store._signals),
    )


def rewrite(store: SqlStore, old: str, new: str) -> None:
    """Break a rule: every statement of `store` that says `old` says `new` instead."""
    found = 0
    for noun in vars(store).values():
        for name, value in list(getattr(noun, "__dict__", {}).items()):
            if isinstance(value, Statement) and old in value:
                setattr(noun, name, value.replace(old, new))
            elif isinstance(value, tuple) and any(isinstance(one, Statement) and old in one for one in value):
                setattr(noun, name, tuple(one.replace(old, new) for one in value))
            else:
                continue
            found += 1
    assert found, f"no statement says {old!r}"
