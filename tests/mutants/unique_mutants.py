"""Keys as mutexes, broken, where tests/storage/test_protocol_unique.py does not do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from entitycelery.storage.sql.commit import Commits
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.unique_key import UniqueKeys
from tests.mutants.mutant import Mutant, around, reword


def _what_ends_holds_its_key(patch: pytest.MonkeyPatch) -> None:
    def append(real: Callable[..., Any], *args: Any, ending: Any = (), **options: Any) -> Any:
        return real(*args, **options)

    around(patch, UniqueKeys, "append", append)


def _what_is_retried_holds_no_key(patch: pytest.MonkeyPatch) -> None:
    ids: set[str] = set()

    def write(real: Callable[..., Any], self: Commits, conn: Any, commits: Any) -> Any:
        ids.update(turn.mail.id for commit in commits for turn in commit.turns)
        return real(self, conn, commits)

    def append(real: Callable[..., Any], *args: Any, ending: Any = (), **options: Any) -> Any:
        return real(*args, ending=ids | set(ending), **options)

    around(patch, Commits, "write", write)
    around(patch, UniqueKeys, "append", append)


def _keys_are_forgotten_early(patch: pytest.MonkeyPatch) -> None:
    reword(patch, "WHERE end_at < (", "WHERE true OR end_at < (")


def _nobody_removes_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlStore, "purge_unique_keys", lambda store, limit: 0)


def _refusals_are_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("entitycelery.storage.sql.commit.REFUSALS", frozenset())


UNIQUE_MUTANTS = [
    Mutant(
        "what-ends-holds-its-key",
        "A message that ends in the same commit holds no key for its outgoing mail.",
        _what_ends_holds_its_key,
        ("tests/storage/test_unique.py::test_a_turn_can_send_its_own_key_again[memory-reject]",),
    ),
    Mutant(
        "what-is-retried-holds-no-key",
        "A message that is retried in the same commit holds its key.",
        _what_is_retried_holds_no_key,
        ("tests/storage/test_unique.py::test_a_turn_that_is_retried_still_holds_its_key[memory]",),
    ),
    Mutant(
        "taken-keys-refuse-no-turn",
        "A turn whose message is rejected fails.",
        _refusals_are_stored,
        (
            "tests/storage/test_unique.py::"
            "test_a_turn_whose_message_is_rejected_commits_nothing_and_says_who_holds_the_key[memory]",
        ),
    ),
    Mutant(
        "keys-are-forgotten-early",
        "The row of a key is removed when its time is over, not before.",
        _keys_are_forgotten_early,
        ("tests/storage/test_unique.py::test_rows_of_keys_that_are_free_are_removed_in_batches[memory]",),
    ),
    Mutant(
        "nobody-removes-keys",
        "One runner removes the rows of keys whose time is over.",
        _nobody_removes_keys,
        ("tests/runtime/test_duties.py::test_the_first_runner_removes_the_rows_of_keys_whose_time_is_over[sqlite]",),
    ),
]
