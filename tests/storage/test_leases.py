"""Leases, as the store keeps them: one body for session locks, and for rows that expire."""

from __future__ import annotations

import threading

from entitycelery.storage.sql.dialects.session_holds import lock_number
from tests.storage.leases import Hosts
from tests.storage.support import opened, query
from tests.waiting import eventually


def test_a_lease_has_one_holder_and_taking_returns_exactly_what_was_had(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    assert one.take(0, 1) == {0: 1, 1: 1}

    assert other.take(0, 1, 2) == {2: 1}

    assert other.confirm() == {2}
    assert one.confirm() == {0, 1}
    assert one.holders() == {0: one.instance, 1: one.instance, 2: other.instance}


def test_taking_locks_nothing_but_what_it_returns(session_hosts: Hosts) -> None:
    one, other = session_hosts("one"), session_hosts("other")
    one.take(0)

    other.take(0, 1)

    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM "
    held = query(other.store, f"{locks}pg_database WHERE datname = current_database())")
    # Two shards and two runners.
    assert held == [(4,)]


def test_a_lease_that_was_taken_again_and_again_is_given_up_at_once(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    assert [one.take(0), one.take(0), one.take(0, 0)] == [{0: 1}, {}, {}]

    one.give(0)

    assert other.take(0) == {0: 2}


def test_a_lease_that_somebody_else_holds_cannot_be_given_up(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    one.take(0)

    other.give(0)

    assert other.take(0) == {}
    assert one.holders() == {0: one.instance}


def test_epochs_grow_with_every_new_holder(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")

    epochs = []
    for host in (one, other, one):
        epochs += host.take(0).values()
        host.give(0)

    assert epochs == [1, 2, 3]


def test_shards_of_one_number_in_several_groups_are_several_leases(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")

    assert one.take(0, group="default") == {0: 1}
    assert other.take(0, group="gpu") == {0: 1}


def test_two_clusters_in_one_database_never_meet(session_hosts: Hosts) -> None:
    one, other = session_hosts("one"), session_hosts("other", cluster="elsewhere")
    one.settle()

    assert one.take(0, 1) == other.take(0, 1) == {0: 1, 1: 1}
    other.give(1)

    assert one.waits_s(0.3) >= 0.3
    assert [runner.instance for runner in one.look().runners] == [one.instance]
    assert one.holders() == {0: one.instance, 1: one.instance}
    assert (one.me.machine_id, other.me.machine_id) == (0, 0)


def test_leases_that_are_rows_run_out_for_who_does_not_renew_them(row_hosts: Hosts) -> None:
    one, other = row_hosts("one", lease_s=0.3), row_hosts("other")
    one.take(0)
    assert other.take(0) == {}

    assert eventually(lambda: other.take(0), timeout_s=5) == {0: 2}

    assert one.confirm() == set()


def test_leases_that_are_rows_are_kept_by_renewing_them(row_hosts: Hosts) -> None:
    one, other = row_hosts("one", lease_s=1.0), row_hosts("other")
    one.take(0)

    for _ in range(8):
        one.waits_s(0.25)
        assert one.confirm() == {0}
        assert other.take(0) == {}


def test_who_leaves_leaves_nothing_behind_but_the_epochs(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    one.take(0, 1)

    one.session.leave()

    assert [runner.instance for runner in other.look().runners] == [other.instance]
    assert other.holders() == {0: None, 1: None}
    assert other.take(0, 1) == {0: 2, 1: 2}


def test_whatever_another_does_wakes_who_waits(session_hosts: Hosts) -> None:
    one, other = session_hosts("one"), session_hosts("other")
    other.take(0)
    one.settle()

    for act in (lambda: other.give(0), lambda: session_hosts("third"), other.session.leave):
        threading.Timer(0.2, act).start()
        assert 0.1 < one.waits_s(10) < 5
        one.settle()


def test_news_of_the_worker_wake_who_waits(hosts: Hosts) -> None:
    host = hosts("one")
    host.settle()

    threading.Timer(0.1, host.interrupt_it).start()

    assert host.waits_s(10) < 5


def test_the_watcher_sees_a_death_at_once(session_hosts: Hosts) -> None:
    watcher = session_hosts("watcher")
    program, instance = session_hosts.in_process()
    watched = watcher.sees(instance)
    assert watched.locked
    watcher.session.watch(watched)
    # Its session asks for the lock while the runner waits; both take a moment.
    watcher.settle()
    eventually(lambda: waiting_for_death(watcher.store) or not watcher.waits_s(0.05))

    killer = threading.Timer(0.3, program.kill)
    killer.start()
    waited_s = watcher.waits_s(20)
    killer.join()

    assert 0.2 < waited_s < 1.5
    assert watcher.sees(instance).locked is False
    assert watcher.take(0, 1) == {0: 2, 1: 2}


def test_a_watch_does_not_look_like_the_watched(session_hosts: Hosts) -> None:
    watcher, third = session_hosts("watcher"), session_hosts("third")
    program, instance = session_hosts.in_process()
    watcher.session.watch(watcher.sees(instance))
    watcher.settle()
    program.kill()

    assert eventually(lambda: third.sees(instance).locked is False)
    # Though the watcher's session, which was not looked after, may hold the lock now, shared.
    assert third.sees(watcher.instance).locked


def test_a_dead_process_is_seen_where_a_file_says_so(sqlite_url: str) -> None:
    hosts = Hosts(sqlite_url)
    with hosts.stack:
        other = hosts("other")
        program, instance = hosts.in_process()
        assert other.sees(instance).locked

        program.kill()

        assert other.sees(instance).locked is False
        assert other.session.remove(other.sees(instance))
        assert other.take(0, 1) == {0: 2, 1: 2}


def test_who_is_there_shows_in_the_store_too(hosts: Hosts) -> None:
    one = hosts("one")
    one.take(3)

    with opened(hosts.url) as store:
        placement = store.placement()

    assert [runner.instance for runner in placement.runners] == [one.instance]
    assert [(lease.shard.number, lease.holder, lease.epoch) for lease in placement.leases] == [(3, one.instance, 1)]


def test_a_lock_number_is_the_whole_instance() -> None:
    numbers = {lock_number(instance) for instance in ("00000000", "7fffffff", "80000000", "ffffffff")}

    assert numbers == {0, 2**31 - 1, -(2**31), -1}


def waiting_for_death(store: object) -> bool:
    """Whether a session waits for a runner's lock."""
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND mode = 'ShareLock'"
    return bool(query(store, waiting)[0][0])  # type: ignore[arg-type]
