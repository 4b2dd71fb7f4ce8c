"""Crashes at every commit: a test is repeated, each time with the process gone before or after another commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

from entitycelery.address import ShardId
from entitycelery.app import EntityCelery
from entitycelery.storage.sessions import DrainSession
from entitycelery.storage.sql.store import SqlStore
from entitycelery.testing.environment import EntityTestEnvironment

When = Literal["before", "after"]

_WHEN: tuple[When, ...] = ("before", "after")
_COMMITS = ("commit", "commit_turn")


class ProcessCrash(BaseException):
    """The process is gone. Nothing of a user's can catch it."""


class _CrashingSession:
    """A drain's session that ends its process at one of its commits."""

    def __init__(self, session: DrainSession, crash: _Crash) -> None:
        self._session = session
        self._crash = crash

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        return self._crash.around(found) if name in _COMMITS else found


class _Crash:
    """Counts commits, and ends the process before or after one of them; None: of none."""

    def __init__(self, at: int | None, when: When) -> None:
        self.commits = 0
        self._at = at
        self._when = when

    def around(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.commits += 1
            is_here = self.commits == self._at
            if is_here and self._when == "before":
                raise ProcessCrash
            result = commit(*args, **kwargs)
            if is_here:
                raise ProcessCrash
            return result

        return run


class CrashingEnvironment(EntityTestEnvironment):
    """An environment whose worker dies once, and is replaced at once by another."""

    def __init__(self, entities: EntityCelery, crash: _Crash) -> None:
        super().__init__(entities)
        self._crash = crash

    def _make_store(self, *args: Any, **kwargs: Any) -> SqlStore:
        store = super()._make_store(*args, **kwargs)
        real, crash = store.drain_session, self._crash

        @contextmanager
        def session(*shards: ShardId, names: Mapping[str, str]) -> Iterator[Any]:
            with real(*shards, names=names) as made:
                yield _CrashingSession(made, crash)

        store.drain_session = session  # type: ignore[method-assign, assignment]
        return store

    def step(self) -> bool:
        try:
            return super().step()
        except ProcessCrash:
            return True


def crash_everywhere(entities: EntityCelery, test: Callable[[EntityTestEnvironment], object]) -> int:
    """Run a test without a crash, and then once more for each of its commits with the process gone before that commit,
    and once with it gone after it; how many commits there were.

    What a test asserts must hold each time: state, replies and messages are as if nothing had happened. Only what a
    handler does outside, without `self.turn.connection`, may happen twice, and this is how to find out whether it does.

    Raises:
        AssertionError: What the test raised, with a note that says at which commit the process was gone.
    """
    counted = _Crash(None, "before")
    with CrashingEnvironment(entities, counted) as env:
        test(env)
    for at in range(1, counted.commits + 1):
        for when in _WHEN:
            _crash_once(entities, test, at, when)
    return counted.commits


def _crash_once(entities: EntityCelery, test: Callable[[EntityTestEnvironment], object], at: int, when: When) -> None:
    environment: AbstractContextManager[EntityTestEnvironment] = CrashingEnvironment(entities, _Crash(at, when))
    with environment as env:
        try:
            test(env)
        except Exception as exc:
            exc.add_note(f"the process was gone {when} commit {at}")
            raise
