"""The app under measurement: one entity, and plain Celery tasks that do the same job."""

from __future__ import annotations

import os
from typing import Any

import psycopg2
from celery import Celery

from entitycelery import Entity, EntityCelery, handler

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
