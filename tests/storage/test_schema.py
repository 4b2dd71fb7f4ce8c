"""The schema: made once whoever comes first, checked in plain sentences, the same by hand as by upgrade."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from entitycelery.exceptions import ConfigurationError, SchemaMissing
from entitycelery.storage.port import closing_store
from entitycelery.storage.sql.store import SqlStore
from entitycelery.storage.sql.url import driver_url
from tests.storage.interleave import Party
from tests.storage.support import (
    OTHER_SHARD,
    SHARD,
    STORED,
    Program,
    address,
    append,
    change,
    claimed_ids,
    commit_of,
    handle_all,
    make_store,
    message,
    opened,
    query,
)
from tests.waiting import eventually

NAMES = ["0001_spine", "0002_sharding"]


def url_of(store: SqlStore) -> str:
    return store.url.render_as_string(hide_password=False)


# Upgrade


def test_an_empty_store_is_made_once(any_url: str) -> None:
    with closing_store(lambda: make_store(any_url)) as store:
        assert isinstance(store, SqlStore)
        with pytest.raises(SchemaMissing):
            store.schema.verify()

        applied = store.schema.upgrade()

        assert applied == [name for name, _ in store.schema.migrations()]
        assert store.schema.upgrade() == []
        store.schema.verify()
        assert append(store, message()) == [STORED]


def test_every_migration_is_listed_with_whether_it_is_applied(any_url: str) -> None:
    with closing_store(lambda: make_store(any_url)) as store:
        assert isinstance(store, SqlStore)
        before = store.schema.migrations()
        store.schema.upgrade()

        assert [name for name, _ in before][: len(NAMES)] == NAMES
        assert not any(applied for _, applied in before)
        assert all(applied for _, applied in store.schema.migrations())


UPGRADING = """
import sys
from tests.storage.support import make_store
store = make_store(sys.argv[1])
print("READY", flush=True)
sys.stdin.readline()
print(len(store.schema.upgrade()), flush=True)
store.schema.verify()
"""


def test_of_four_processes_that_upgrade_at_once_one_applies(store_url: str) -> None:
    programs = [Program(UPGRADING, store_url) for _ in range(4)]
    try:
        assert [program.line() for program in programs] == ["READY"] * 4
        applied = [party.join() for party in [Party(program.finish_and_read) for program in programs]]
    finally:
        for program in programs:
            program.kill()

    with closing_store(lambda: make_store(store_url)) as store:
        assert isinstance(store, SqlStore)
        assert sorted(applied) == ["0", "0", "0", str(len(store.schema.migrations()))]
        store.schema.verify()


def test_an_upgrade_that_fails_leaves_nothing_behind(store_url: str) -> None:
    broken = make_store(store_url)
    broken.schema._all[-1] = type(broken.schema._all[-1])(1, "0001_broken", "CREATE TABLE t (n integer); NONSENSE")

    with pytest.raises(Exception, match="NONSENSE"):
        broken.schema.upgrade()
    broken.close()

    with opened(store_url) as store:
        store.schema.verify()
        assert "t" not in tables_of(store)


def tables_of(store: SqlStore) -> set[str]:
    engine = create_engine(store.url)
    schema = getattr(store.dialect, "schema", None)
    try:
        return set(inspect(engine).get_table_names(schema=schema))
    finally:
        engine.dispose()


# Verify: each trouble its own sentence


def test_a_store_without_the_schema_gives_the_command(any_url: str) -> None:
    with closing_store(lambda: make_store(any_url)) as store:
        assert isinstance(store, SqlStore)
        with pytest.raises(SchemaMissing, match="no schema for cluster 'conformance'; run: entitycelery db upgrade"):
            store.schema.verify()
        with pytest.raises(SchemaMissing, match="run: entitycelery db upgrade"):
            append(store, message())


def test_a_store_of_an_older_release_names_what_it_lacks(durable: SqlStore) -> None:
    newer = make_store(url_of(durable))
    known = newer.schema._all
    known.append(type(known[-1])(known[-1].number + 1, "9999_later", "CREATE TABLE later (n integer)"))

    with pytest.raises(SchemaMissing, match="lacks 9999_later; run: entitycelery db upgrade"):
        newer.schema.verify()

    assert newer.schema.upgrade() == ["9999_later"]
    newer.schema.verify()
    newer.close()


def test_a_store_that_a_newer_release_has_added_to_still_serves(durable: SqlStore) -> None:
    apply_migration_99(durable)

    durable.schema.verify()

    assert durable.schema.upgrade() == []


def test_a_store_of_a_newer_release_that_needs_its_migration_is_not_touched(durable: SqlStore) -> None:
    apply_migration_99(durable)
    change(
        durable,
        "INSERT INTO {meta} (name, value) VALUES ('needs_migration', '99') "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )

    with pytest.raises(SchemaMissing, match="has migration 99, which this release does not know"):
        durable.schema.verify()


def apply_migration_99(store: SqlStore) -> None:
    statement = "INSERT INTO {migration} (number, name, checksum, applied_at) VALUES (99, 'x', 'x', {now})"
    change(store, statement.replace("{now}", store.dialect.now))


def test_a_migration_that_was_applied_in_another_form_is_told(durable: SqlStore) -> None:
    change(durable, "UPDATE {migration} SET checksum = 'other'")

    with pytest.raises(SchemaMissing, match="0001_spine was applied to the store in another form"):
        durable.schema.verify()


def test_a_store_of_another_cluster_is_refused(sqlite_store: SqlStore) -> None:
    stranger = make_store(url_of(sqlite_store), cluster="stranger")

    for look in (stranger.schema.verify, stranger.schema.upgrade):
        with pytest.raises(
            ConfigurationError, match="belongs to cluster 'conformance', entity_cluster says 'stranger'"
        ):
            look()
    stranger.close()


def test_a_store_with_another_number_of_shards_is_refused(durable: SqlStore) -> None:
    other = make_store(url_of(durable), shards=8)

    for look in (other.schema.verify, other.schema.upgrade):
        with pytest.raises(ConfigurationError, match="has 4 shards per group, entity_shards_per_group says 8"):
            look()
    other.close()


# By hand


POSTGRES_CATALOG = """
    SELECT 'column', table_name, column_name, data_type, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_schema = :schema
    UNION ALL SELECT 'index', tablename, indexname, indexdef, '', '', '' FROM pg_indexes WHERE schemaname = :schema
    UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', '', ''
        FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace)
    UNION ALL SELECT 'relation', relname, relkind::text, relpersistence::text, reloptions::text, '', ''
        FROM pg_class WHERE relnamespace = CAST(:schema AS regnamespace)
    UNION ALL SELECT 'sequence', sequencename, cache_size::text, increment_by::text, '', '', ''
        FROM pg_sequences WHERE schemaname = :schema
"""


def catalog(store: SqlStore) -> list[tuple[object, ...]]:
    if store.dialect.name == "sqlite":
        rows = query(store, "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    else:
        rows = query(store, POSTGRES_CATALOG, schema=getattr(store.dialect, "schema", ""))
    # The secret of each store is its own.
    meta = [(name, value if name != "signal_secret" else "") for name, value in query(store, "SELECT * FROM {meta}")]
    kept = query(store, "SELECT number, name, checksum FROM {migration}") + meta
    return sorted((*rows, *kept), key=repr)


def run_by_hand(store: SqlStore, script: str) -> None:
    url = url_of(store)
    if store.dialect.name == "sqlite":
        command = ["sqlite3", "-bail", str(store.url.database)]
    else:
        command = ["psql", "-q", "-v", "ON_ERROR_STOP=1", url.replace("+psycopg2", "")]
    try:
        done = subprocess.run(command, input=script, text=True, capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    assert done.returncode == 0, done.stderr


def test_the_printed_schema_applied_by_hand_is_the_upgraded_one(store_url: str, tmp_path: Path) -> None:
    with opened(store_url) as store:
        upgraded = catalog(store)
        store.schema.drop()
    by_hand = store_url if store_url.startswith("postgresql") else f"sqlite:///{tmp_path}/by-hand.db"

    with closing_store(lambda: make_store(by_hand)) as store:
        assert isinstance(store, SqlStore)
        run_by_hand(store, store.schema.sql())

        store.schema.verify()
        assert store.schema.upgrade() == []
        assert catalog(store) == upgraded
        assert append(store, message(key="k")) == [STORED]
        assert len(handle_all(store)) == 1


def test_each_store_signs_tokens_with_a_secret_of_its_own(postgres_url: str, tmp_path: Path) -> None:
    secrets = []
    for url, cluster in ((f"sqlite:///{tmp_path}/store.db", "red"), (postgres_url, "red"), (postgres_url, "blue")):
        with opened(url, cluster=cluster) as store:
            secrets.append(store.signal_secret())

    assert len(set(secrets)) == 3
    assert all(re.fullmatch(rb"[0-9a-f]{64}", secret) for secret in secrets)


def test_the_schema_is_printed_without_a_connection() -> None:
    store = make_store("postgresql://nobody@127.0.0.1:1/nowhere")

    assert "CREATE SCHEMA IF NOT EXISTS entity_conformance;" in store.schema.sql()


# Clusters


def test_two_clusters_in_one_database_never_meet(postgres_url: str) -> None:
    with opened(postgres_url, cluster="red") as red, opened(postgres_url, cluster="blue", shards=8) as blue:
        red_mail, blue_mail = message("a", key="k", cluster="red"), message("a", key="k", cluster="blue")
        assert append(red, red_mail) == append(blue, blue_mail) == [STORED]

        with red.drain_session(SHARD) as here, blue.drain_session(SHARD) as there:
            here.attend()
            [mine] = here.claim(10)
            assert blue.attended([SHARD]) == set()
            assert blue.mailbox_status(address("a"), SHARD).claimed is False
            [theirs] = there.claim(10)
            assert (claimed_ids([mine]), claimed_ids([theirs])) == ([red_mail.id], [blue_mail.id])
            here.commit([commit_of(mine)], last=True)

        assert blue.state(address("a")).version == 0
        assert blue.pending_ids([blue_mail.id]) == {blue_mail.id}


def test_commits_of_callers_are_announced_to_their_cluster_alone(postgres_url: str) -> None:
    with opened(postgres_url, cluster="red") as red, opened(postgres_url, cluster="blue") as blue:
        by_red, by_blue = red.listen(), blue.listen()
        assert by_red is not None
        assert by_blue is not None
        heard = {SHARD: red, OTHER_SHARD: blue}
        engine = create_engine(red.url)
        for shard, store in heard.items():
            with engine.begin() as conn:
                append(store, message(shard=shard), connection=conn)
        engine.dispose()

        # Commits are announced in their order: who hears the second has been told of the first, if ever.
        assert eventually(lambda: by_blue.take().shards) == {OTHER_SHARD}
        assert eventually(lambda: by_red.take().shards) == {SHARD}


def test_dropping_a_cluster_leaves_the_other_alone(postgres_url: str) -> None:
    with opened(postgres_url, cluster="red") as red, opened(postgres_url, cluster="blue") as blue:
        append(blue, message("a"))
        red.schema.make_views([("state_account", "Account", {"n": "int"})])

        red.schema.drop()

        with pytest.raises(SchemaMissing):
            red.schema.verify()
        blue.schema.verify()
        assert len(handle_all(blue)) == 1
        assert red.schema.upgrade() != []
        assert red.pending(None, None, 10) == []


def test_the_driver_url_of_a_store_is_the_one_it_was_made_with(store_url: str) -> None:
    with opened(store_url) as store:
        assert store.url == driver_url(store_url)
