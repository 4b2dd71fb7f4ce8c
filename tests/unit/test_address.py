"""Addresses, shards, keys and fingerprints: wire formats, pinned by the values that stores already hold."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entitycelery.address import (
    LARGEST_ID_BYTES,
    Address,
    ShardId,
    explicit_message_id,
    fingerprint,
    is_unique_name,
    keyed_message_id,
    lock_key,
    lock_space,
    new_message_id,
    parse_address,
    queue_name,
    shard_of,
    unique_name,
    valid_cluster,
    valid_entity_id,
    valid_type_name,
)
from entitycelery.exceptions import ConfigurationError

ALICE = Address("Account", "alice")
NAME_OF_ORDER_17 = "unique:ceed696253e19f29d1179db4e652e79e"

type_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,30}", fullmatch=True)
entity_ids = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=200)
any_text = st.text(max_size=40)


@given(type_names, entity_ids)
def test_a_written_address_is_parsed_back(type_name: str, entity_id: str) -> None:
    address = Address(type_name, entity_id)

    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "Account", "/alice", "Account/", "1st/alice", "Acc ount/alice", "Account/a\0b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


@pytest.mark.parametrize(
    ("entity_id", "shard_of_64", "shard_of_7"),
    [("alice", 7, 5), ("bob", 0, 2), ("0", 33, 4), ("ü", 21, 4), ("a/b", 28, 2), ("x" * 1024, 35, 0)],
)
def test_shards_never_change(entity_id: str, shard_of_64: int, shard_of_7: int) -> None:
    assert shard_of("default", entity_id, 64) == ShardId("default", shard_of_64)
    assert shard_of("other", entity_id, 7) == ShardId("other", shard_of_7)


# Of 1, 2, 64 and 1,024 shards. They were computed bit by bit from the polynomial, not by the code under test.
SHARDS = {
    "a": (0, 1, 3, 579),
    " ": (0, 1, 5, 837),
    "0": (0, 1, 33, 801),
    "-1": (0, 0, 42, 42),
    "alice": (0, 1, 7, 71),
    "ü": (0, 1, 21, 469),
    "e\u0301": (0, 1, 45, 813),
    "日本": (0, 0, 12, 460),
    "\U0001f600": (0, 0, 4, 324),
    "a/b/c": (0, 1, 9, 329),
    "x" * 2400: (0, 1, 55, 311),
    "ü" * 1200: (0, 1, 1, 961),
}


@pytest.mark.parametrize("entity_id", SHARDS, ids=lambda entity_id: ascii(entity_id[:6]))
def test_the_table_of_shards_never_changes(entity_id: str) -> None:
    found = tuple(shard_of("gpu", entity_id, number) for number in (1, 2, 64, 1024))

    assert found == tuple(ShardId("gpu", number) for number in SHARDS[entity_id])


@given(entity_ids, st.integers(1, 4096))
def test_every_id_has_a_shard(entity_id: str, shards: int) -> None:
    assert 0 <= shard_of("default", entity_id, shards).number < shards


def test_queue_names_never_change() -> None:
    assert queue_name("default", ShardId("blue", 17)) == "entity.default.blue.17"


def test_lock_keys_never_change_and_differ_by_cluster_type_and_id() -> None:
    assert lock_key("default", ALICE) == -3186842744755460395
    assert lock_key("other", ALICE) == -2461760587405835563
    assert lock_key("default", Address("Account", "bob")) == -7504971907693138179
    assert lock_key("default", Address("Accountalice", "")) != lock_key("default", Address("Account", "alice"))


def test_lock_spaces_never_change_and_fit_in_32_bits() -> None:
    assert lock_space("default", "attention default") == -642785073
    assert lock_space("default", "migration") == 415029959


@given(entity_ids, any_text)
def test_lock_keys_fit_in_64_signed_bits(entity_id: str, cluster: str) -> None:
    assert -(2**63) <= lock_key(cluster, Address("T", entity_id)) < 2**63
    assert -(2**31) <= lock_space(cluster, entity_id) < 2**31


def test_keyed_ids_never_change() -> None:
    assert keyed_message_id("default", ALICE, "deposit", "order-17") == "c96a1985-5ac2-5d68-b968-0b3e1a5f24ad"
    assert keyed_message_id("other", ALICE, "deposit", "order-17") == "868f0562-0710-5d5c-9364-03aa8e81df41"


def test_names_of_keys_that_are_mutexes_never_change() -> None:
    assert unique_name("default", ALICE, "deposit", "order-17") == NAME_OF_ORDER_17
    assert unique_name("other", ALICE, "deposit", "order-17") != NAME_OF_ORDER_17
    assert is_unique_name(NAME_OF_ORDER_17)


@given(any_text, any_text.filter(bool), st.binary())
def test_no_fingerprint_looks_like_the_name_of_a_key(operation: str, key: str, args: bytes) -> None:
    plain, name = fingerprint(ALICE, operation, args), unique_name("default", ALICE, operation, key)

    # What the index of these messages goes by.
    assert plain < "u" < name
    assert not is_unique_name(plain)


@given(st.lists(st.tuples(any_text, any_text, any_text, any_text, any_text.filter(bool)), min_size=2, unique=True))
def test_keyed_ids_are_equal_only_if_every_part_is(parts: list[tuple[str, str, str, str, str]]) -> None:
    ids = {
        keyed_message_id(cluster, Address(kind, entity_id), operation, key)
        for cluster, kind, entity_id, operation, key in parts
    }

    assert len(ids) == len(parts)


def test_where_one_part_ends_and_the_next_begins_matters() -> None:
    assert keyed_message_id("c", Address("A", "bc"), "op", "k") != keyed_message_id("c", Address("Ab", "c"), "op", "k")
    assert keyed_message_id("c", Address("A", "b"), "op1", "k") != keyed_message_id("c", Address("A", "b"), "op", "1k")


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="key must not be empty"):
        keyed_message_id("default", ALICE, "deposit", "")


def test_fingerprints_never_change() -> None:
    assert fingerprint(ALICE, "deposit", b'{"amount":5}') == "e94da825440fd53f41c87faa882eaf46"
    assert fingerprint(ALICE, "deposit", b"{}") == "44e9d4ea1b460d0075d7ae639ebdab9f"


def test_a_task_id_is_the_message_id() -> None:
    assert explicit_message_id("order 17/ü") == "order 17/ü"
    assert explicit_message_id("x" * 255) == "x" * 255


def test_a_task_id_that_is_long_or_unprintable_is_hashed_and_the_hash_never_changes() -> None:
    assert explicit_message_id("x" * 256) == "2eebbdbd-075a-597f-9d6b-871526f52530"
    assert explicit_message_id("ü" * 128) != "ü" * 128
    assert explicit_message_id("a\nb") == "b87c758d-8f45-5994-bda2-52f393022fef"
    assert explicit_message_id("\ud800") == "5c5cf27b-5721-51ed-a07f-15804a02696c"


@pytest.mark.parametrize("task_id", ["", "a\0b"])
def test_a_task_id_that_no_store_can_keep_is_refused(task_id: str) -> None:
    with pytest.raises(ConfigurationError, match="task_id"):
        explicit_message_id(task_id)


def test_new_ids_are_distinct_uuids_of_version_7_that_sort_by_time() -> None:
    ids = [new_message_id() for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert {UUID(i).version for i in ids} == {7}
    assert {UUID(i).variant for i in ids} == {"specified in RFC 4122"}
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)


@pytest.mark.parametrize(("given", "text"), [("alice", "alice"), (17, "17"), (-1, "-1"), (" ", " "), ("ü/ß", "ü/ß")])
def test_an_entity_id_is_a_str_or_an_int(given: str | int, text: str) -> None:
    assert valid_entity_id(given) == text


@pytest.mark.parametrize("bad", ["", "a\0b", "\ud800", "x" * (LARGEST_ID_BYTES + 1), "ü" * 1201, True, None, 1.5, b"a"])
def test_a_bad_entity_id_is_refused(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="an entity id"):
        valid_entity_id(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["", "1a", "a b", "a/b", "ä", "x" * 201, "a\n", "-a"])
def test_a_bad_type_name_is_refused(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="an entity type is named by"):
        valid_type_name(bad)


@pytest.mark.parametrize("bad", ["", "1a", "A", "a-b", "a.b", "ä", "x" * 33, "a\n", "_a"])
def test_a_bad_cluster_is_refused_by_the_name_of_its_setting(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="entity_cluster"):
        valid_cluster(bad)
