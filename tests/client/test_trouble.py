"""Sending while the store fails, and from many threads and processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import SendTimeout, StoreUnavailable
from tests.client.proxy import Moment, proxied
from tests.client.support import Account, drain, make_entities, serving


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_send_to_an_unreachable_store_is_a_send_timeout(cluster_name: str) -> None:
    url = f"postgresql://postgres@127.0.0.1:{closed_port()}/nowhere"
    entities = make_entities(url, cluster_name, auto_migrate=False, send_timeout_s=1, send_retries=100)
    began_s = time.monotonic()

    with pytest.raises(SendTimeout, match="could not be stored") as caught:
        Account.ref("alice").deposit.send(5)

    assert caught.value.transient
    assert caught.value.address == "Account/alice"
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    assert time.monotonic() - began_s < 15
    entities.close()


def test_a_send_is_tried_as_often_as_the_setting_says(cluster_name: str) -> None:
    url = f"postgresql://postgres@127.0.0.1:{closed_port()}/nowhere"
    entities = make_entities(url, cluster_name, auto_migrate=False, send_timeout_s=30, send_retries=2)

    with pytest.raises(SendTimeout, match=r"after 3 attempt\(s\)"):
        Account.ref("alice").deposit.send(5)

    entities.close()


def test_a_store_that_does_not_answer_is_a_send_timeout_too(postgres_url: str, cluster_name: str) -> None:
    entities = make_entities(postgres_url, cluster_name, send_timeout_s=1)
    blocker = psycopg2.connect(postgres_url)
    with blocker, blocker.cursor() as cursor:
        cursor.execute(f"LOCK TABLE entity_{cluster_name}.message IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(SendTimeout):
            Account.ref("alice").deposit.send(5)

    blocker.close()
    assert Account.ref("alice").deposit.send(5).id
    drain(entities)
    assert entities.state(Account.ref("alice")).balance == 5
    entities.close()


def sends() -> dict[str, Callable[[EntityCelery], Any]]:
    deposit = lambda: Account.ref("alice").deposit  # noqa: E731
    return {
        "plain": lambda entities: deposit().send(5),
        "keyed": lambda entities: deposit().options(key="k").send(5),
        "many": lambda entities: entities.send_many([deposit().prepare(2), deposit().prepare(3)])[-1],
    }


@pytest.mark.parametrize("kind", sends())
@pytest.mark.parametrize("moment", ["before it is sent", "before it is answered"])
@pytest.mark.parametrize("statement", [b"EXECUTE ", b"COMMIT\0"], ids=["insert", "commit"])
def test_a_send_that_is_cut_off_is_stored_once(
    postgres_url: str, cluster_name: str, kind: str, moment: Moment, statement: bytes
) -> None:
    if kind == "plain" and statement == b"COMMIT\0":
        pytest.skip("a plain send is one statement, which commits itself")
    with proxied(postgres_url) as proxy:
        entities = make_entities(proxy.url, cluster_name, send_timeout_s=20)
        Account.ref("warm-up").deposit.options(key="prepares the statements").send(1)
        Account.ref("warm-up").deposit.send(1)
        proxy.cut_once(statement, moment)

        sent = sends()[kind](entities)
        drain(entities)

        assert proxy.cuts == 1
        assert entities.state(Account.ref("alice")).balance == 5
        assert sent.result(timeout_s=5) == 5
        entities.close()


@pytest.mark.parametrize("kind", ["plain", "keyed"])
def test_a_send_that_is_handled_before_its_sender_hears_of_it_is_not_stored_again(
    postgres_url: str, cluster_name: str, kind: str
) -> None:
    with proxied(postgres_url) as proxy:
        worker = make_entities(postgres_url, cluster_name)
        sender = make_entities(proxy.url, cluster_name, send_timeout_s=20)
        Account.ref("warm-up").deposit.send(1)
        drain(worker)
        statement = b"EXECUTE " if kind == "plain" else b"COMMIT\0"
        proxy.cut_once(statement, "before it is answered", meanwhile=lambda: drain(worker))

        sent = sends()[kind](sender)

        assert proxy.cuts == 1
        assert sent.result(timeout_s=5) == 5
        assert drain(worker) == 0
        assert worker.state(Account.ref("alice")).balance == 5
        sender.close()
        worker.close()


def test_sending_goes_on_after_all_connections_were_ended(postgres_url: str, cluster_name: str) -> None:
    entities = make_entities(postgres_url, cluster_name)
    Account.ref("alice").deposit.send(1)
    drain(entities)
    with psycopg2.connect(postgres_url) as conn, conn.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'entity%'"
        )
        assert cursor.rowcount >= 2

    for _ in range(3):
        Account.ref("alice").deposit.send(1)
    with pytest.raises(StoreUnavailable):
        # Its pooled connection is dead; a wake-up or the sweep brings the next drain.
        drain(entities)
    drain(entities)

    assert entities.state(Account.ref("alice")).balance == 4
    entities.close()


def test_twenty_threads_send_and_each_keeps_its_order(entities: EntityCelery) -> None:
    def send_some(name: int) -> None:
        for number in range(25):
            Account.ref(name).note.send(f"{number}")
            Account.ref("all").deposit.send(1)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(send_some, range(20)))
    drain(entities)

    for name in range(20):
        assert entities.state(Account.ref(name)).log == [f"{number}" for number in range(25)]
    assert entities.state(Account.ref("all")).balance == 500


def test_threads_that_use_a_fresh_app_at_once_make_it_once(store_url: str, cluster_name: str) -> None:
    entities = make_entities(store_url, cluster_name)
    entities.close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda n: Account.ref("alice").deposit.send(1), range(10)))
    drain(entities)

    assert entities.state(Account.ref("alice")).balance == 10
    entities.close()


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_sends_and_asks_and_leaves_its_parent_alone(entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    with serving(entities):
        assert alice.deposit.ask(1) == 1

    child = os.fork()
    if child == 0:
        try:
            alice.deposit.send(10)
            drain(entities)
            seen = alice.statement()
        finally:
            os._exit(0 if seen == 11 else 1)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    with serving(entities):
        assert alice.deposit.ask(100) == 111


def test_forked_children_send_at_the_same_time(entities: EntityCelery) -> None:
    Account.ref("alice").deposit.send(1)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(25):
                    Account.ref("alice").deposit.send(1)
                code = 0
            finally:
                os._exit(code)
        children.append(child)

    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    drain(entities)
    assert entities.state(Account.ref("alice")).balance == 101
