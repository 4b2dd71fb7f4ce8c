"""The app under measurement: an entity, plain Celery tasks that do the same job, and workflows."""

from __future__ import annotations

import os
from datetime import datetime
from functools import partial
from typing import Any

import psycopg2
from celery import Celery

from entitycelery import Entity, EntityCelery, Workflow, handler

app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ.get("BENCH_BACKEND"))
app.conf.worker_hijack_root_logger = False
entities = EntityCelery(app)

_connection: list[Any] = []


@entities.register
class Account(Entity):
    """A balance in one JSON row."""

    balance: int = 0

    @handler
    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance


@app.task(ignore_result=True)
def plain_deposit(account: str, amount: int) -> None:
    """The same job in plain Celery: one UPDATE in a transaction of its own."""
    if not _connection:
        _connection.append(psycopg2.connect(os.environ["BENCH_PLAIN_DSN"]))
    with _connection[0] as conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO plain (id, balance) VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET balance = plain.balance + excluded.balance",
            (account, amount),
        )
        cursor.execute("INSERT INTO plain_done (at) VALUES (clock_timestamp())")


@app.task
def echo(amount: int) -> int:
    """What an idle `delay().get()` is measured with."""
    return amount


@entities.workflow
def steps(flow: Workflow, number: int) -> int:
    """A workflow of so many steps that do nothing."""
    for step in range(number):
        flow.step(identity, step)
    return number


def identity(number: int) -> int:
    return number


@entities.workflow
def sleeps(flow: Workflow, until: datetime) -> None:
    """A workflow that sleeps until an instant."""
    flow.sleep_until(until)


@entities.workflow
def fans_out(flow: Workflow, number: int) -> int:
    """A workflow that has so many Celery tasks run at once."""
    return sum(flow.gather(*[partial(flow.task, echo, at) for at in range(number)]))
