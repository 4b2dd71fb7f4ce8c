"""Another number of shards per group: all that waits moves with it, or nothing, whoever sends meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import create_engine

from entitycelery.address import ShardId, shard_of
from entitycelery.exceptions import ConfigurationError, StoreUnavailable
from entitycelery.message import NewMessage, Status
from entitycelery.placement import NewRunner
from entitycelery.reshard_plan import GroupPlan
from entitycelery.storage.sql.statement import Statement
from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import Party
from tests.storage.support import (
    DUPLICATE,
    SHARDS,
    STORED,
    Program,
    append,
    change,
    claimed_ids,
    commit_of,
    ended,
    make_store,
    message,
    query,
)
from tests.waiting import eventually

ALIVE_S = 10.0
NAMES = [f"entity-{n}" for n in range(40)]


def hashed(entity_id: str, shards: int = SHARDS, *, group: str = "default", **options: Any) -> NewMessage:
    """A message as somebody makes it who counts so many shards."""
    return message(entity_id, shard=shard_of(group, entity_id, shards), **options)


def reshard(store: SqlStore, number: int, groups: Sequence[str] = ()) -> Any:
    return store.resharding.carry_out(number, groups, alive_s=ALIVE_S)


def misplaced(store: SqlStore, shards: int) -> list[str]:
    """Entities with messages or dead letters in another shard than that of so many."""
    rows = query(
        store,
        "SELECT shard_group, shard, entity_id FROM {message} "
        "UNION ALL SELECT shard_group, shard, entity_id FROM {dead_letter}",
    )
    return [entity_id for group, shard, entity_id in rows if shard_of(group, entity_id, shards) != (group, shard)]


def number_kept(store: SqlStore) -> str:
    [(value,)] = query(store, "SELECT value FROM {meta} WHERE name = 'shards_per_group'")
    return str(value)


def sent_and_dead(store: SqlStore) -> None:
    """Mail for every name in two groups, of which three in the first are dead letters."""
    append(store, *(hashed(name, group=group) for name in NAMES for group in ("default", "gpu")))
    shard = shard_of("default", NAMES[0], SHARDS)
    with store.drain_session(shard) as session:
        mailboxes = session.claim(3)
        dead = [commit_of(box, *(ended(mail, status=Status.DEAD) for mail in box.mail)) for box in mailboxes]
        session.commit(dead, last=True)


@pytest.mark.parametrize("number", [1, 3, 64])
def test_pending_messages_and_dead_letters_move_to_their_new_shards(store: SqlStore, number: int) -> None:
    sent_and_dead(store)
    before = sorted(query(store, "SELECT id, seq, rev FROM {message}"))

    reshard(store, number)

    assert misplaced(store, number) == []
    assert number_kept(store) == str(number)
    assert sorted(query(store, "SELECT id, seq, rev FROM {message}")) == before
    assert store.schema.migrations()
    with pytest.raises(ConfigurationError, match=f"has {number} shards per group, entity_shards_per_group says 4"):
        store.schema.verify()


def test_a_plan_counts_per_group_and_changes_nothing(store: SqlStore) -> None:
    sent_and_dead(store)
    moving = sum(shard_of("gpu", name, 6).number != shard_of("gpu", name, SHARDS).number for name in NAMES)

    plan = store.resharding.plan(6, ["idle"], alive_s=ALIVE_S)

    assert (plan.before, plan.after, plan.runners, plan.is_done) == (SHARDS, 6, (), False)
    groups = {group.group: group for group in plan.groups}
    assert sorted(groups) == ["default", "gpu", "idle"]
    assert groups["gpu"] == GroupPlan("gpu", 40, moving, 0, 0)
    assert groups["idle"] == GroupPlan("idle", 0, 0, 0, 0)
    assert (groups["default"].messages, groups["default"].dead_letters) == (37, 3)
    assert groups["default"].moving_messages + groups["default"].moving_dead_letters == moving
    assert misplaced(store, SHARDS) == []
    assert number_kept(store) == str(SHARDS)


def test_more_than_one_page_moves(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entitycelery.storage.sql.reshard._PAGE", 7)
    sent_and_dead(store)

    done = reshard(store, 9)

    assert misplaced(store, 9) == []
    assert sum(group.messages for group in done.groups) == 77


def test_the_old_number_back_again(store: SqlStore) -> None:
    sent_and_dead(store)

    reshard(store, 64)
    reshard(store, SHARDS)

    assert misplaced(store, SHARDS) == []
    store.schema.verify()


def test_the_same_number_again_does_nothing_and_remembers_what_the_broker_may_have(store: SqlStore) -> None:
    sent_and_dead(store)

    first = reshard(store, 2)
    again = reshard(store, 2)
    store.resharding.finished(2)
    finished = reshard(store, 2)

    assert [(plan.is_done, plan.had) for plan in (first, again, finished)] == [(False, 4), (True, 4), (True, 2)]
    assert [group.group for group in again.groups] == ["default", "gpu"]


# Runners


def runner(worker: str = "w1") -> NewRunner:
    return NewRunner(
        worker=worker,
        address=f"{worker}@host",
        host="host",
        pid=7,
        groups=("default",),
        weight=1.0,
        pool="prefork",
        library_version="1",
    )


def test_while_a_runner_is_there_nothing_is_changed_and_it_is_named(store: SqlStore) -> None:
    sent_and_dead(store)

    with store.lease_session("w1", deadline_s=5.0, lease_s=ALIVE_S) as session:
        session.register(runner())
        plan = store.resharding.plan(2, (), alive_s=ALIVE_S)
        with pytest.raises(ConfigurationError, match=r"stop w1@host \(pid 7 on host\) first"):
            reshard(store, 2)

    assert [one.address for one in plan.runners] == ["w1@host"]
    assert misplaced(store, SHARDS) == []
    assert number_kept(store) == str(SHARDS)


def test_a_runner_that_was_silent_for_too_long_holds_nothing_up(store: SqlStore) -> None:
    with store.lease_session("w1", deadline_s=5.0, lease_s=ALIVE_S) as session:
        session.register(runner())
        is_sqlite = store.dialect.name == "sqlite"
        past = "seen_at - 11" if is_sqlite else "seen_at - interval '11 seconds'"
        change(store, f"UPDATE {{runner}} SET seen_at = {past}")  # noqa: S608 - constants

        reshard(store, 2)

    assert number_kept(store) == "2"


def test_a_runner_that_was_silent_is_evicted_and_cannot_come_back_with_the_old_number(durable: SqlStore) -> None:
    shards = [ShardId("default", number) for number in range(SHARDS)]
    is_sqlite = durable.dialect.name == "sqlite"
    past = "seen_at - 11" if is_sqlite else "seen_at - interval '11 seconds'"
    with closing(make_store(url_of(durable))) as frozen:
        frozen.schema.verify()
        with frozen.lease_session("w1", deadline_s=5.0, lease_s=ALIVE_S) as session:
            session.register(runner())
            session.take(shards)
            change(durable, f"UPDATE {{runner}} SET seen_at = {past}")  # noqa: S608 - constants

            reshard(durable, 2)

            assert still_held(session) == frozenset()
        with (
            frozen.lease_session("w1", deadline_s=5.0, lease_s=ALIVE_S) as session,
            pytest.raises(ConfigurationError, match="has 2 shards per group, entity_shards_per_group says 4"),
        ):
            session.register(runner())
    assert durable.placement().runners == ()
    with (
        closing(make_store(url_of(durable), shards=2)) as new,
        new.lease_session("w2", deadline_s=5.0, lease_s=ALIVE_S) as session,
    ):
        session.register(runner("w2"))
        assert set(session.take(shards[:2])) == set(shards[:2])


def still_held(session: Any) -> frozenset[ShardId]:
    """What a session may go on with; one that was ended holds nothing."""
    try:
        return session.confirm(starved=False, leaving=False) or frozenset()
    except StoreUnavailable:
        return frozenset()


def url_of(store: SqlStore) -> str:
    return store.url.render_as_string(hide_password=False)


def test_a_runner_that_registers_in_the_middle_of_it_is_told(durable: SqlStore) -> None:
    outcomes: list[str] = []

    def register() -> None:
        with (
            closing(make_store(url_of(durable))) as store,
            store.lease_session("w1", deadline_s=5.0, lease_s=ALIVE_S) as session,
        ):
            try:
                session.register(runner())
                outcomes.append("registered")
            except ConfigurationError as exc:
                outcomes.append(str(exc))

    insert = durable.resharding._set_meta
    parties: list[Party] = []

    class Begun:
        """The statement that changes the number, before which somebody begins to register."""

        def __get__(self, *_: object) -> Any:
            if not parties:
                parties.append(Party(register))
                eventually(lambda: is_waiting(durable) or outcomes)
            return insert

    class Stopped(type(durable.resharding)):  # type: ignore[misc]
        _set_meta = Begun()

    del durable.resharding._set_meta
    durable.resharding.__class__ = Stopped
    reshard(durable, 2)
    parties[0].join()

    assert outcomes == ["the store has 2 shards per group, entity_shards_per_group says 4"]
    assert durable.placement().runners == ()


def is_waiting(store: SqlStore) -> bool:
    """Whether somebody waits for a lock; of SQLite nobody can tell, and the outcome must be the same anyway."""
    return store.dialect.name == "sqlite" or bool(query(store, "SELECT 1 FROM pg_locks WHERE NOT granted"))


def test_leases_of_shards_that_are_no_more_go_and_the_others_keep_their_epochs(store: SqlStore) -> None:
    shards = [ShardId("default", number) for number in range(SHARDS)]
    with store.lease_session("w1", deadline_s=5.0, lease_s=ALIVE_S) as session:
        session.register(runner())
        epochs = session.take(shards)
        session.leave()

    reshard(store, 2)

    assert {lease.shard: lease.epoch for lease in store.placement().leases} == {s: epochs[s] for s in shards[:2]}
    assert all(lease.holder is None for lease in store.placement().leases)


# Senders that slept through it


@pytest.fixture
def sleeper(store: SqlStore) -> SqlStore:
    """A store through which somebody has sent with the old number, and that has another one by now."""
    append(store, hashed("before"))
    # Behind this object's back, as another process does it.
    other = store.resharding
    other.carry_out(7, (), alive_s=ALIVE_S)
    assert store.shards_per_group == SHARDS
    return store


def test_a_plain_send_is_hashed_anew(sleeper: SqlStore) -> None:
    assert append(sleeper, hashed("a")) == [STORED]

    assert misplaced(sleeper, 7) == []
    assert sleeper.shards_per_group == 7


def test_a_send_that_asks_for_attention_is_hashed_anew(sleeper: SqlStore) -> None:
    assert sleeper.append_and_ask(hashed("a"), nonce="n") is False

    assert misplaced(sleeper, 7) == []
    assert len(sleeper.pending(None, None, 10)) == 2


def test_a_keyed_send_is_hashed_anew_and_stays_one_message(sleeper: SqlStore) -> None:
    assert append(sleeper, hashed("a", key="k")) == [STORED]
    assert append(sleeper, hashed("a", key="k")) == [DUPLICATE]

    assert misplaced(sleeper, 7) == []


def test_a_key_from_before_is_known_afterwards(store: SqlStore) -> None:
    append(store, hashed("a", key="k"))
    reshard(store, 7)

    assert append(store, hashed("a", key="k")) == [DUPLICATE]


def test_many_are_hashed_anew_in_one_transaction(sleeper: SqlStore) -> None:
    assert append(sleeper, *(hashed(name) for name in NAMES)) == [STORED] * 40

    assert misplaced(sleeper, 7) == []


def test_a_full_mailbox_is_counted_in_the_new_shard(sleeper: SqlStore) -> None:
    outcomes = append(sleeper, *(hashed("a", args=f'{{"n": {n}}}', capacity=2) for n in range(2)))
    third = append(sleeper, hashed("a", capacity=2))

    assert [*outcomes, *third] == [STORED, STORED, "full"]


def test_what_waits_for_an_entity_is_looked_for_in_its_new_shard(sleeper: SqlStore) -> None:
    [pending] = sleeper.pending(None, None, 10)
    old = shard_of("default", "before", SHARDS)

    assert sleeper.mailbox_status(pending.address, old).pending == 1
    assert [one.id for one in sleeper.pending(pending.address, old, 10)] == [pending.id]


def test_mail_that_a_turn_sends_is_hashed_anew(store: SqlStore) -> None:
    append(store, hashed("a"))
    with store.drain_session(shard_of("default", "a", SHARDS)) as session:
        [mailbox] = session.claim(10)
        reshard(store, 7)
        mail = [hashed(name) for name in NAMES]
        result = session.commit([commit_of(mailbox, ended(mailbox.mail[0], outgoing=mail))], last=True)

    assert (result.lost, result.refused) == (frozenset(), {})
    assert len(query(store, "SELECT id FROM {message}")) == 40
    assert misplaced(store, 7) == []


def test_dead_letters_are_retried_into_their_new_shards(store: SqlStore) -> None:
    sent_and_dead(store)
    ids = [row[0] for row in query(store, "SELECT id FROM {dead_letter}")]
    reshard(store, 7)

    assert {one.id for one in store.retry_dead(ids)} == set(ids)

    assert misplaced(store, 7) == []


def test_who_was_told_another_number_from_the_start_stores_nothing(store_url: str) -> None:
    with closing(make_store(store_url)) as store, closing(make_store(store_url)) as late:
        store.schema.upgrade()
        reshard(store, 7)

        with pytest.raises(ConfigurationError, match="has 7 shards per group, entity_shards_per_group says 4"):
            append(late, hashed("a"))

        assert query(store, "SELECT id FROM {message}") == []


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_callers_transaction_that_is_older_than_the_reshard_hashes_with_the_new_number(
    postgres: SqlStore, level: str
) -> None:
    append(postgres, hashed("before"))
    engine = create_engine(postgres.url, isolation_level=level)
    with closing(engine.connect()) as conn, conn.begin():
        conn.exec_driver_sql("SELECT 1 FROM pg_class")
        reshard(postgres, 7)
        for name in NAMES:
            assert append(postgres, hashed(name), connection=conn) == [STORED]
    engine.dispose()

    assert len(postgres.pending(None, None, 100)) == 41
    assert misplaced(postgres, 7) == []


def test_a_callers_open_transaction_is_waited_for(postgres: SqlStore) -> None:
    engine = create_engine(postgres.url)
    with closing(engine.connect()) as conn, conn.begin() as transaction:
        append(postgres, hashed("a"), connection=conn)
        resharding = Party(lambda: reshard(postgres, 7))
        eventually(lambda: query(postgres, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        transaction.commit()
    resharding.join()
    engine.dispose()

    assert len(postgres.pending(None, None, 10)) == 1
    assert misplaced(postgres, 7) == []


def test_a_callers_transaction_that_stays_open_ends_the_attempt_and_nothing_is_changed(
    postgres: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = ("SET LOCAL lock_timeout = 200", *postgres.dialect.lock_everything[2:])
    monkeypatch.setattr(postgres.dialect, "lock_everything", patience)
    engine = create_engine(postgres.url)
    with closing(engine.connect()) as conn, conn.begin():
        append(postgres, hashed("a"), connection=conn)
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            reshard(postgres, 7)
    engine.dispose()

    assert number_kept(postgres) == str(SHARDS)
    assert append(postgres, hashed("b")) == [STORED]
    assert misplaced(postgres, SHARDS) == []


def test_a_drain_that_slept_through_it_loses_nothing(durable: SqlStore) -> None:
    append(durable, *(hashed("a") for _ in range(3)))
    with durable.drain_session(shard_of("default", "a", SHARDS)) as frozen:
        mailboxes = frozen.claim(10)
        reshard(durable, 64)
        assert len(claimed_ids(mailboxes)) == 3
        result = frozen.commit([commit_of(mailbox) for mailbox in mailboxes], last=True)

    assert result.lost == frozenset()
    assert query(durable, "SELECT id FROM {message}") == []
    assert len(query(durable, "SELECT id FROM {reply}")) == 3


# Senders in the middle of it


SENDING = """
import itertools, os, sys
from entitycelery.address import shard_of
from tests.storage.support import append, make_store, message
store = make_store(sys.argv[1])
store.schema.verify()
print("READY", flush=True)
for n in itertools.count():
    name = f"{sys.argv[2]}-{n}"
    options = {"key": name} if n % 3 == 0 else {}
    append(store, message(name, shard=shard_of("default", name, store.shards_per_group), **options))
    print(name, flush=True)
"""


def test_senders_under_way_store_all_they_say_in_the_new_shards(durable: SqlStore) -> None:
    url = durable.url.render_as_string(hide_password=False)
    programs = [Program(SENDING, url, str(n)) for n in range(2)]
    try:
        assert [program.line() for program in programs] == ["READY"] * 2
        said = [program.line() for program in programs for _ in range(30)]
        for number in (64, 3, 9):
            reshard(durable, number)
            said += [program.line() for program in programs for _ in range(30)]
    finally:
        for program in programs:
            program.kill()

    stored = {row[0] for row in query(durable, "SELECT entity_id FROM {message}")}
    assert set(said) <= stored
    assert misplaced(durable, 9) == []


# A crash in the middle of it


RESHARDING = """
import sys
from tests.storage.support import make_store
store = make_store(sys.argv[1])
store.schema.verify()
print("READY", flush=True)
steps = 0
def stop_at(statement):
    global steps
    steps += 1
    if steps == int(sys.argv[2]):
        print("STOPPED", flush=True)
        sys.stdin.readline()
import entitycelery.storage.sql.statement as s
run = s._execute
def execute(conn, statement, params):
    stop_at(statement)
    return run(conn, statement, params)
s._execute = execute
import entitycelery.storage.sql.reshard as r
r._PAGE = 30
store.resharding.carry_out(7, (), alive_s=10.0)
print("DONE", steps, sep="\\n", flush=True)
sys.stdin.readline()
"""


def test_killed_before_any_of_its_statements_it_leaves_the_old_number_and_all_mail_where_it_was(
    durable: SqlStore,
) -> None:
    sent_and_dead(durable)
    url = durable.url.render_as_string(hide_password=False)
    whole = Program(RESHARDING, url, "0")
    assert [whole.line(), whole.line()] == ["READY", "DONE"]
    steps = int(whole.line())
    whole.finish()
    assert (number_kept(durable), misplaced(durable, 7)) == ("7", [])
    reshard(durable, SHARDS)

    for step in (*range(1, steps - 2, steps // 6), steps - 2, steps - 1, steps):
        program = Program(RESHARDING, url, str(step))
        assert [program.line(), program.line()] == ["READY", "STOPPED"]
        program.kill()

        assert eventually(lambda: append(durable, hashed("later"))) == [STORED]
        assert (number_kept(durable), misplaced(durable, SHARDS)) == (str(SHARDS), [])


def test_a_store_of_the_release_before_knows_its_number_after_the_upgrade(store_url: str) -> None:
    with closing(make_store(store_url)) as old, closing(make_store(store_url)) as new:
        newer = old.schema._all[1:]
        del old.schema._all[1:]
        # That release knew of no sequence.
        old.schema._keep_shards = Statement("")
        old.schema.upgrade()

        assert new.schema.upgrade() == [migration.name for migration in newer]

        assert append(new, hashed("a")) == [STORED]
        with (
            closing(make_store(store_url, shards=9)) as stranger,
            pytest.raises(ConfigurationError, match="has 4 shards"),
        ):
            append(stranger, hashed("b"))
