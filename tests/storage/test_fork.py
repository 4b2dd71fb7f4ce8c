"""A store that is used in a process, in its forked children and in the process again.

An inherited connection must neither be used nor closed by the child, and locks must follow the process that took them.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from entitycelery.storage.sql.store import SqlStore
from tests.storage.interleave import before
from tests.storage.support import SHARD, STORED, append, handle, handle_all, holder, message, opened
from tests.waiting import eventually

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def forked(act: Callable[[], None]) -> int:
    """Start a child that does it and ends; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
    except BaseException:  # noqa: BLE001 - a child of pytest must never go on as pytest
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def in_child(act: Callable[[], None]) -> bool:
    return ended_well(forked(act))


@contextmanager
def child_that_waits(act: Callable[[], None]) -> Iterator[tuple[int, Callable[[], bool]]]:
    """A child that has done it and waits to be let go; its pid, and what lets it go and tells whether it ended well."""
    ready_end, ready = os.pipe()
    let_go_end, let_go = os.pipe()

    def work() -> None:
        act()
        os.write(ready, b"!")
        os.read(let_go_end, 1)

    pid = forked(work)
    assert os.read(ready_end, 1) == b"!"
    left = [pid]

    def end() -> bool:
        os.write(let_go, b"!")
        return ended_well(left.pop())

    try:
        yield pid, end
    finally:
        if left:
            end()
        for descriptor in (ready_end, ready, let_go_end, let_go):
            os.close(descriptor)


def use(store: SqlStore, name: str) -> None:
    """Send, drain, wait, read: something with every kind of connection."""
    with store.waiter() as waiter:
        sent = message(name, reply_to=waiter.channel)
        append(store, sent)
        # Others drain the same shard: whoever gets it first.
        eventually(lambda: [handle_all(store), store.replies([sent.id])][1])
    assert store.state(sent.address).version == 1


def test_a_store_works_in_the_parent_then_in_a_child_then_in_the_parent(durable: SqlStore) -> None:
    use(durable, "before")

    assert in_child(lambda: use(durable, "child"))

    use(durable, "after")
    assert handle_all(durable) == []


def test_a_store_that_the_parent_never_used_works_in_a_child(store_url: str) -> None:
    with opened(store_url):
        pass
    with opened(store_url) as store:
        assert in_child(lambda: use(store, "child"))
        use(store, "parent")


def test_many_children_use_a_store_while_the_parent_does(durable: SqlStore) -> None:
    use(durable, "before")

    children = [forked(lambda n=n: [use(durable, f"{n}.{i}") for i in range(5)] and None) for n in range(4)]  # type: ignore[misc]
    for i in range(5):
        use(durable, f"parent.{i}")

    assert [ended_well(pid) for pid in children] == [True] * 4
    assert handle_all(durable) == []


def test_a_grandchild_uses_the_store_as_well(durable: SqlStore) -> None:
    def child() -> None:
        use(durable, "child")
        assert in_child(lambda: use(durable, "grandchild"))
        use(durable, "child again")

    assert in_child(child)


def test_a_fork_in_the_middle_of_a_drain_leaves_its_claims_to_the_parent(durable: SqlStore) -> None:
    append(durable, message("a"))
    with durable.drain_session(SHARD) as session:
        mailboxes = session.claim(10)

        def child() -> None:
            # Neither may the child have the parent's mail, nor may its end take the parent's claims along.
            assert handle_all(durable) == []
            durable.close()

        assert in_child(child)
        assert handle_all(durable) == []

        session.keep_only((), mailboxes)
        assert len(handle(session)) == 1


def test_a_childs_claims_are_its_own_and_end_with_it(durable: SqlStore) -> None:
    append(durable, message("a"))
    handle_all(durable)
    append(durable, message("b"))
    kept: list[object] = []

    def child() -> None:
        session = durable.drain_session(SHARD)
        kept.append(session)
        assert len(session.__enter__().claim(10)) == 1

    with child_that_waits(child) as (_, end):
        assert handle_all(durable) == []
        assert end()

    assert len(eventually(lambda: handle_all(durable))) == 1


def test_a_child_that_lives_on_keeps_no_dead_parents_claims_on_sqlite(sqlite_store: SqlStore) -> None:
    append(sqlite_store, message("a"))
    url = sqlite_store.url.render_as_string(hide_password=False)

    with holder(url) as program:
        assert handle_all(sqlite_store) == []
        with child_that_waits(lambda: None):
            program.kill()

            assert len(eventually(lambda: handle_all(sqlite_store))) == 1


def test_a_fork_in_the_middle_of_a_transaction_harms_neither_side(postgres: SqlStore) -> None:
    use(postgres, "before")
    children: list[bool] = []

    def fork(_sent: str) -> None:
        n = len(children)
        children.append(in_child(lambda: use(postgres, f"child.{n}")))

    sent = message("a", key="k")
    with before(postgres, "client", fork):
        assert append(postgres, sent) == [STORED]

    assert len(children) >= 3
    assert all(children)
    assert handle_all(postgres) == [sent.id]


def test_a_child_that_was_forked_while_a_thread_held_the_stores_lock_goes_on(durable: SqlStore) -> None:
    def act() -> None:
        signal.alarm(20)
        append(durable, message("a"))

    with durable.engines._mutex:
        pid = forked(act)

    assert ended_well(pid)
    assert len(durable.pending(None, None, 10)) == 1
