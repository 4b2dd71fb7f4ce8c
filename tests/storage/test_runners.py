"""Runners as the store keeps them: who is there, and what becomes of those that are not seen any more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from entitycelery.exceptions import StoreUnavailable
from entitycelery.placement import MACHINE_IDS
from tests.storage.leases import Hosts
from tests.storage.support import change, opened, query
from tests.waiting import eventually

LONG_AGO = "UPDATE {{runner}} SET seen_at = {then} WHERE instance = :instance"


def age(hosts: Hosts, instance: str, by_s: float) -> None:
    """Have a runner not seen for so long."""
    with opened(hosts.url) as store:
        change(store, LONG_AGO.format(then=store.dialect.after(f"-{by_s}")), instance=instance)


def test_a_runner_is_seen_by_everybody_with_what_it_says_of_itself(hosts: Hosts) -> None:
    one, other = hosts("one", weight=2.5, groups=("gpu", "default"), app_version="7", pid=4711), hosts("other")

    seen = other.sees(one.instance)

    assert (seen.worker, seen.address, seen.host, seen.pid) == (one.new.worker, "one@host", "host", 4711)
    assert (seen.groups, seen.weight, seen.pool, seen.app_version) == (("gpu", "default"), 2.5, "prefork", "7")
    assert (seen.starved, seen.leaving) == (False, False)
    assert seen.unseen_s < 5
    assert seen.locked is not False
    assert {runner.instance for runner in one.look().runners} == {one.instance, other.instance}


def test_what_a_runner_says_with_its_renewal_is_seen(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    age(hosts, one.instance, 60)
    assert other.sees(one.instance).unseen_s > 50

    one.confirm(starved=True, leaving=True)

    seen = other.sees(one.instance)
    assert (seen.starved, seen.leaving) == (True, True)
    assert seen.unseen_s < 5


def test_a_machine_id_is_nobody_elses_and_used_again(hosts: Hosts) -> None:
    one, two, three = (hosts(name) for name in ("one", "two", "three"))
    assert [host.me.machine_id for host in (one, two, three)] == [0, 1, 2]

    two.session.leave()

    assert hosts("four").me.machine_id == 1
    assert hosts("five").me.machine_id == 3


def test_machine_ids_of_many_that_register_at_once_do_not_collide(hosts: Hosts) -> None:
    barrier = threading.Barrier(6)

    def register(number: int) -> int:
        barrier.wait(30)
        return hosts(f"n{number}").me.machine_id

    with opened(hosts.url), ThreadPoolExecutor(6) as threads:
        ids = list(threads.map(register, range(6)))

    assert sorted(ids) == list(range(6))
    assert max(ids) < MACHINE_IDS


def test_a_worker_that_registers_again_replaces_itself(hosts: Hosts) -> None:
    before = hosts("one")
    before.take(0, 1)

    after = hosts("one", worker=before.new.worker)

    assert after.instance != before.instance
    assert [runner.instance for runner in after.look().runners] == [after.instance]
    # Nothing is inherited: what the earlier session held is free, and taken like anything else.
    assert eventually(lambda: after.take(0, 1)).keys() == {0, 1}
    assert after.take(0) == {}


def test_a_restarted_worker_with_the_same_name_host_and_pid_inherits_no_lease(hosts: Hosts) -> None:
    dead = hosts("same")
    dead.take(0, 1)

    restarted = hosts("same")

    assert restarted.instance != dead.instance
    assert restarted.confirm() == set()
    assert restarted.take(0, 1, 2) == {2: 1}
    assert restarted.holders() == {0: dead.instance, 1: dead.instance, 2: restarted.instance}


def test_a_runner_is_removed_only_when_it_has_not_been_seen_since_the_look(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    one.take(0)
    age(hosts, one.instance, 60)
    seen = other.sees(one.instance)

    # It says something between the look and the removal.
    one.confirm()
    assert not other.session.remove(seen)
    assert one.confirm() == {0}
    age(hosts, one.instance, 60)

    assert other.session.remove(other.sees(one.instance))
    assert [runner.instance for runner in other.look().runners] == [other.instance]


def test_an_evicted_runner_holds_nothing_and_learns_of_it(hosts: Hosts) -> None:
    one, other = hosts("one"), hosts("other")
    one.take(0, 1)

    other.session.remove(other.sees(one.instance))

    taken: dict[int, int] = {}
    eventually(lambda: taken.update(other.take(0, 1)) or taken.keys() == {0, 1}, timeout_s=10)
    # Where its session was ended, that says the same.
    with suppress(StoreUnavailable):
        assert one.confirm() is None
    assert other.confirm() == {0, 1}


def test_of_two_who_remove_a_runner_one_has_done_it(hosts: Hosts) -> None:
    one, two, dead = hosts("one"), hosts("two"), hosts("dead")
    seen = one.sees(dead.instance)

    assert [host.session.remove(seen) for host in (one, two)] == [True, False]


def test_a_removal_of_an_earlier_registration_does_not_hit_the_present_one(hosts: Hosts) -> None:
    other, before = hosts("other"), hosts("one")
    seen = other.sees(before.instance)
    after = hosts("one", worker=before.new.worker)
    after.take(0)

    assert not other.session.remove(seen)

    assert after.confirm() == {0}


def test_the_sessions_of_an_evicted_worker_are_ended_and_no_others(session_hosts: Hosts) -> None:
    one, other, third = (session_hosts(name) for name in ("one", "other", "third"))
    one.session.watch(other.me)

    other.session.remove(other.sees(one.instance))

    def workers() -> set[str]:
        rows = query(other.store, "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()")
        return {name.split()[-1] for (name,) in rows if " lease " in name or " watch " in name}

    eventually(lambda: workers() == {other.new.worker, third.new.worker}, timeout_s=10)


def test_an_eviction_ends_no_session_of_another_cluster(session_hosts: Hosts) -> None:
    # A token is random; here even that is the same.
    one, other = session_hosts("one"), session_hosts("other")
    elsewhere = session_hosts("one", cluster="elsewhere", worker=one.new.worker)
    elsewhere.take(0)

    assert other.session.remove(other.sees(one.instance))

    name = f"entitycelery conformance lease {one.new.worker}"
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"
    eventually(lambda: query(other.store, sessions, name=name) == [(0,)], timeout_s=10)
    assert elsewhere.confirm() == {0}
