"""Workers and senders whose only way to PostgreSQL is PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.ledgers import Load
from tests.conftest import url_or_skip
from tests.pgbouncer import PgBouncer
from tests.services import Services
from tests.waiting import eventually

GENEROUS_S = 20.0
LEASE_S = 2.0
OpenPooledBank = Callable[..., Bank]


@pytest.fixture
def pooled_bank(new_bank: OpenBank, pooled_url: str) -> OpenPooledBank:
    """Opens a bank behind PgBouncer, with claims and leases that expire soon."""

    def open_one(broker: str, **conf: Any) -> Bank:
        return new_bank(
            broker,
            **{
                "entity_database_url": pooled_url,
                "entity_lock_mode": "rows",
                "entity_lease_timeout_s": LEASE_S,
                "entity_refresh_interval_s": 0.5,
                "entity_shards_per_group": 4,
                **conf,
            },
        )

    return open_one


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_senders_of_every_kind_are_served(pooled_bank: OpenPooledBank, pool: str) -> None:
    bank = pooled_bank("redis")
    bank.worker(pool=pool)
    alice = bank.Account.ref("alice")

    assert alice.deposit.ask(100) == 100
    assert asyncio.run(alice.deposit.aask(0)) == 100
    first = alice.deposit.options(key="rent").send(5)
    again = alice.deposit.options(key="rent").send(5)
    bank.entities.send_many([alice.deposit.prepare(1) for _ in range(10)])
    alice.transfer.send(15, "bob")
    alice.deposit.options(delay_s=0.3).send(1_000)
    engine = create_engine(bank.conf["entity_database_url"].replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE orders (id int)"))
        alice.deposit.options(connection=conn).send(10_000)
    engine.dispose()

    assert first.id == again.id
    assert eventually(lambda: bank.entities.state(alice).balance == 11_100, timeout_s=GENEROUS_S)
    assert eventually(lambda: bank.entities.state(bank.Account.ref("bob")).balance == 15)


@pytest.mark.chaos
@pytest.mark.parametrize(("broker", "pool"), [("amqp", "prefork"), ("redis", "threads")])
def test_load_of_a_killed_worker_is_handled_once_by_the_other(
    pooled_bank: OpenPooledBank, broker: str, pool: str
) -> None:
    bank = pooled_bank(broker)
    one, other = bank.start_worker(pool=pool), bank.start_worker(pool=pool)
    one.await_ready()
    other.await_ready()

    with Load(bank) as load:
        load.await_handled(50)
        one.kill_tree()

    load.assert_each_applied_once_in_order()
    assert other.process.poll() is None


@pytest.mark.chaos
def test_load_survives_killed_pool_processes(pooled_bank: OpenPooledBank) -> None:
    bank = pooled_bank("redis")
    worker = bank.worker()

    with Load(bank) as load:
        for count in (20, 100):
            load.await_handled(count)
            os.kill(worker.pool_pids()[0], signal.SIGKILL)

    load.assert_each_applied_once_in_order()
    assert worker.process.poll() is None


@pytest.mark.chaos
def test_load_survives_a_pooler_that_is_killed_and_comes_back(
    services: Services, pooled_bank: OpenPooledBank, postgres_url: str
) -> None:
    url_or_skip(services.pgbouncer())
    pooler = PgBouncer(postgres_url)
    try:
        bank = pooled_bank("redis", entity_database_url=pooler.start())
        worker = bank.worker()

        with Load(bank) as load:
            for count in (30, 120):
                load.await_handled(count)
                pooler.kill()
                pooler.launch()

        load.assert_each_applied_once_in_order()
        assert worker.process.poll() is None
    finally:
        pooler.stop()


@pytest.mark.chaos
def test_mail_of_a_frozen_pool_process_is_handled_elsewhere_and_its_own_commit_is_dropped(
    pooled_bank: OpenPooledBank,
) -> None:
    bank = pooled_bank("redis")
    worker = bank.worker()
    journal = bank.Journal.ref("held")
    held = journal.hold.send("me", 0, "held")
    pid = int(eventually(lambda: bank.mark("held.started")))

    with frozen(pid):
        bank.allow("held")
        assert held.result(timeout_s=GENEROUS_S) != pid

    assert journal.write.ask("me", 1)
    eventually(lambda: "turn lost to another writer" in worker.log())
    assert journal.of("me") == [0, 1]


def test_turns_outlast_the_expiry_of_their_claims(pooled_bank: OpenPooledBank) -> None:
    bank = pooled_bank("redis")
    bank.worker()
    journal = bank.Journal.ref("held")
    held = journal.hold.send("me", 0, "held")
    pid = int(eventually(lambda: bank.mark("held.started")))
    stamp = bank.Journal.ref("late").stamp.options(delay_s=2 * LEASE_S).send(1)

    assert stamp.result(timeout_s=GENEROUS_S)
    assert bank.entities.status(journal).status == "processing"
    bank.allow("held")

    assert held.result(timeout_s=GENEROUS_S) == pid
    assert journal.of("me") == [0]


@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}], ids=["default", "options ignored"])
def test_a_worker_with_session_locks_does_not_start_behind_a_transaction_pooler(
    services: Services, new_bank: OpenBank, postgres_url: str, settings: dict[str, str]
) -> None:
    url_or_skip(services.pgbouncer())
    pooler = PgBouncer(postgres_url, **settings)
    try:
        bank = new_bank("redis", entity_database_url=pooler.start(), entity_auto_migrate=False)
        worker = bank.start_worker()

        assert worker.exit_code() != 0
        assert 'set entity_lock_mode = "rows"' in worker.log()
        assert "Traceback" not in worker.log()
    finally:
        pooler.stop()
