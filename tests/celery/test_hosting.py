"""Which workers host entities, what they say about it, and which refuse to start."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest
from celery import Celery

from entitycelery.exceptions import ReplyTimeout
from tests.celery.banks import Bank
from tests.celery.conftest import OpenBank
from tests.celery.workers import Worker
from tests.waiting import eventually

SHARDS = 4


def refusal(worker: Worker) -> str:
    """The log of a worker that must not start; a start that goes wrong ends by itself."""
    assert worker.exit_code() != 0
    assert " ready." not in worker.log()
    return worker.log()


def shard_queues(bank: Bank, worker: Worker) -> set[str]:
    """The entity queues that a worker consumes."""
    found = eventually(bank.app.control.inspect([worker.node], timeout=2).active_queues)
    return {queue["name"] for queue in found[worker.node] if queue["name"].startswith("entity.")}


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--without-entities"], "--without-entities"), (["-Q", "celery"], "-Q without --shard-groups")],
    ids=["without-entities", "Q"],
)
def test_worker_that_is_told_so_hosts_nothing_and_runs_tasks(
    new_bank: OpenBank, options: list[str], reason: str
) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    bank.module.app.conf.task_default_queue = "celery"
    bank.conf["task_default_queue"] = "celery"
    worker = bank.worker(*options)

    bank.leave_mark_task.apply_async(("task-ran",))
    sent = bank.Account.ref("alice").deposit.send(1)

    assert eventually(lambda: bank.mark("task-ran"))
    with pytest.raises(ReplyTimeout):
        sent.result(timeout_s=2.5)
    assert f"[entities] none hosted: {reason}" in worker.log()
    assert worker.runner_pids() == []
    assert shard_queues(bank, worker) == set()


def test_worker_with_queues_and_shard_groups_hosts_and_serves_both(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_shards_per_group=SHARDS)
    tasks = bank.conf["task_default_queue"]
    worker = bank.worker("-Q", tasks, "--shard-groups", "default")

    bank.leave_mark_task.delay("task-ran")

    assert bank.Account.ref("alice").deposit.ask(1) == 1
    assert eventually(lambda: bank.mark("task-ran"))
    cluster = bank.conf["entity_cluster"]
    assert shard_queues(bank, worker) == {f"entity.{cluster}.default.{number}" for number in range(SHARDS)}
    assert "[entities] cluster" in worker.log()


def test_banner_names_store_broker_and_types_without_a_password(new_bank: OpenBank) -> None:
    bank = new_bank("amqp", entity_shards_per_group=SHARDS)
    parts = urlsplit(bank.conf["entity_database_url"])
    secret = urlunsplit(parts._replace(netloc=f"{parts.username}:hush-hush@{parts.hostname}:{parts.port}"))

    worker = bank.worker(entity_database_url=secret)

    log = worker.log()
    assert f"[entities] cluster {bank.conf['entity_cluster']}, groups default, {SHARDS} shards each" in log
    assert f"store:  postgresql://{parts.username}:***@{parts.hostname}:{parts.port}{parts.path}" in log
    assert "broker: amqp://guest:**@" in log
    assert "types:  Account, Journal" in log
    assert "hush-hush" not in log
    tree = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children()]
    assert all("hush-hush" not in " ".join(process.cmdline()) for process in tree)


def test_worker_on_an_empty_sqlite_database_creates_the_schema(new_bank: OpenBank) -> None:
    bank = new_bank("folder", entity_auto_migrate=None)

    bank.worker()

    assert all(applied for _, applied in bank.entities.store.schema.migrations())
    assert bank.Account.ref("alice").deposit.ask(1) == 1


def test_worker_on_an_empty_postgresql_database_refuses_and_gives_the_command(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_auto_migrate=None)

    log = refusal(bank.start_worker())

    assert f"entitycelery: the store has no schema for cluster '{bank.conf['entity_cluster']}'" in log
    assert "run: entitycelery db upgrade" in log
    assert "Traceback" not in log
    assert not any(applied for _, applied in bank.entities.store.schema.migrations())


def test_worker_with_auto_migrate_creates_the_schema_on_postgresql(new_bank: OpenBank) -> None:
    bank = new_bank("redis", entity_auto_migrate=True, entity_shards_per_group=SHARDS)

    bank.worker()

    assert all(applied for _, applied in bank.entities.store.schema.migrations())
    assert bank.Account.ref("alice").deposit.ask(1) == 1


def test_worker_with_another_number_of_shards_refuses_with_both_numbers(new_bank: OpenBank) -> None:
    bank = new_bank("folder", entity_shards_per_group=SHARDS)
    bank.entities.store.schema.upgrade()

    log = refusal(bank.start_worker(entity_shards_per_group=32))

    assert f"the store has {SHARDS} shards per group, entity_shards_per_group says 32" in log


def test_worker_with_a_bad_setting_refuses_and_names_it(new_bank: OpenBank) -> None:
    bank = new_bank("folder")

    log = refusal(bank.start_worker(entity_batch_size=0))

    assert "entitycelery: entity_batch_size must be greater than 0" in log
    assert "Traceback" not in log


def test_worker_whose_database_is_away_refuses_without_a_traceback_or_password(new_bank: OpenBank) -> None:
    bank = new_bank("folder")

    url = "postgresql://somebody:hush-hush@127.0.0.1:1/nowhere"
    log = refusal(bank.start_worker(entity_database_url=url, broker_url="memory://"))

    assert "entitycelery: " in log
    assert "Traceback" not in log
    assert "hush-hush" not in log


def test_worker_of_an_app_without_entities_is_not_touched(new_bank: OpenBank) -> None:
    bank = new_bank("redis")
    settings = {name: value for name, value in bank.conf.items() if not name.startswith("entity_")}
    bank.conf = settings
    worker = Worker(
        "plain", bank.folder, "-c1", "-lINFO", module="tests.celery.apps.plain", environment=bank.environment()
    )
    try:
        worker.await_ready()
        with Celery("client", set_as_current=False) as client:
            client.conf.update(settings)
            client.send_task("bank.leave_mark", args=("task-ran",))

            assert eventually(lambda: bank.mark("task-ran"))
        assert "[entities]" not in worker.log()
        assert "entitycelery.drain" not in worker.log()
        assert worker.runner_pids() == []
    finally:
        worker.end()
