"""Identity and keys, broken, where tests/storage/test_protocol_keys.py and test_protocol_ends.py do not do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from entitycelery import address, codec
from entitycelery.message import AppendOutcome
from entitycelery.storage.sql import message as message_module
from entitycelery.storage.sql.change import Changes
from entitycelery.storage.sql.dialects.postgresql import PostgreSQL
from entitycelery.storage.sql.reply import Replies
from entitycelery.storage.sql.store import SqlStore
from tests.mutants.mutant import Mutant, around, replace_everywhere


def _locks_of_all_clusters(patch: pytest.MonkeyPatch) -> None:
    real = address.lock_key
    replace_everywhere(patch, real, lambda cluster, entity: real("all", entity))


def _attention_of_all_clusters(patch: pytest.MonkeyPatch) -> None:
    real = address.lock_space
    replace_everywhere(patch, real, lambda cluster, kind: real("all", kind))


def _queues_of_all_clusters(patch: pytest.MonkeyPatch) -> None:
    real = address.queue_name
    replace_everywhere(patch, real, lambda cluster, shard: real("all", shard))


def _one_channel(patch: pytest.MonkeyPatch) -> None:
    def begin(real: Callable[..., None], self: PostgreSQL, *args: Any) -> None:
        real(self, *args)
        self.ring_channel = "entity_ring"

    around(patch, PostgreSQL, "__init__", begin)


def _keys_of_all_operations(patch: pytest.MonkeyPatch) -> None:
    real = address.keyed_message_id
    replace_everywhere(patch, real, lambda cluster, entity, operation, key: real(cluster, entity, "any", key))


def _fingerprint_of_the_address(patch: pytest.MonkeyPatch) -> None:
    real = address.fingerprint
    replace_everywhere(patch, real, lambda entity, operation, args: real(entity, operation, b""))


def _arguments_as_they_come(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codec, "_canonical", msgspec.json.Encoder())


def _ours_are_all_right(patch: pytest.MonkeyPatch) -> None:
    def outcome(real: Callable[..., AppendOutcome], sent: Any, found: Any, first: str) -> AppendOutcome:
        return AppendOutcome.STORED if found[2] else real(sent, found, first)

    around(patch, message_module, "_outcome", outcome)


def _a_repeated_send_is_a_new_one(patch: pytest.MonkeyPatch) -> None:
    def append(real: Callable[..., Any], self: SqlStore, messages: Any, *, again: bool = False, **options: Any) -> Any:
        return real(self, messages, **options)

    around(patch, SqlStore, "append", append)


def _a_second_answer_yields(patch: pytest.MonkeyPatch) -> None:
    def begin(real: Callable[..., None], self: Changes, *given: Any) -> None:
        real(self, *given)
        self._answer = self._answer + " ON CONFLICT (id) DO NOTHING"  # type: ignore[assignment]

    around(patch, Changes, "__init__", begin)


def _replies_of_any_age(patch: pytest.MonkeyPatch) -> None:
    around(patch, Replies, "purge", lambda real, self, conn, older_than_s, limit: real(self, conn, -1e6, limit))


KEY_MUTANTS = [
    Mutant(
        "locks-of-all-clusters",
        "The key of a claim contains the cluster.",
        _locks_of_all_clusters,
        ("tests/storage/test_schema.py::test_two_clusters_in_one_database_never_meet",),
    ),
    Mutant(
        "attention-of-all-clusters",
        "The key of a shard's attention contains the cluster.",
        _attention_of_all_clusters,
        ("tests/storage/test_schema.py::test_two_clusters_in_one_database_never_meet",),
    ),
    Mutant(
        "queues-of-all-clusters",
        "The name of a shard's queue contains the cluster.",
        _queues_of_all_clusters,
        ("tests/unit/test_address.py::test_queue_names_never_change",),
    ),
    Mutant(
        "one-channel",
        "The channel on which callers' commits are announced contains the cluster.",
        _one_channel,
        ("tests/storage/test_schema.py::test_commits_of_callers_are_announced_to_their_cluster_alone",),
    ),
    Mutant(
        "keys-of-all-operations",
        "A key belongs to one operation of one entity.",
        _keys_of_all_operations,
        (
            "tests/client/test_send.py::test_a_key_belongs_to_its_address_and_operation[sqlite]",
            "tests/unit/test_address.py::test_keyed_ids_never_change",
        ),
    ),
    Mutant(
        "fingerprint-of-the-address",
        "The fingerprint contains the arguments.",
        _fingerprint_of_the_address,
        (
            "tests/storage/test_append.py::"
            "test_a_key_with_other_arguments_is_a_conflict_while_the_message_is_pending[memory]",
        ),
    ),
    Mutant(
        "arguments-as-they-come",
        "Equal arguments have equal bytes.",
        _arguments_as_they_come,
        ("tests/unit/test_codec.py::test_canonical_json_sorts_nested_objects_and_writes_no_spaces",),
    ),
    Mutant(
        "ours-are-all-right",
        "Of two messages of one send with one key and other arguments the second is refused.",
        _ours_are_all_right,
        ("tests/storage/test_append.py::test_a_key_with_other_arguments_in_the_same_call_is_a_conflict[memory]",),
    ),
    Mutant(
        "a-repeated-send-is-a-new-one",
        "A sender that does not know whether it committed repeats its send as one with a key.",
        _a_repeated_send_is_a_new_one,
        (
            "tests/client/test_trouble.py::"
            "test_a_send_that_is_handled_before_its_sender_hears_of_it_is_not_stored_again[plain]",
        ),
    ),
    Mutant(
        "a-second-answer-yields",
        "A cancel cannot answer a message a second time.",
        _a_second_answer_yields,
        ("tests/storage/test_cancel.py::test_a_message_that_has_an_answer_cannot_get_another_by_a_cancel[sqlite]",),
    ),
    Mutant(
        "replies-of-any-age",
        "A key is forgotten when its reply is older than the retention, not before.",
        _replies_of_any_age,
        (
            "tests/storage/test_waiting_for_replies.py::"
            "test_replies_older_than_the_retention_are_purged_and_no_others[memory]",
        ),
    ),
]
