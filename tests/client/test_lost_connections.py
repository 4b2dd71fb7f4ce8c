"""Whoever waits for a reply while the database restarts goes on waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg2
import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import StoreUnavailable
from tests.client.support import Account, drain
from tests.waiting import eventually

END_ALL = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def two_asks_at_once() -> int:
    return max(await asyncio.gather(Account.ref("alice").deposit.aask(5), Account.ref("alice").deposit.aask(5)))


ASKS: dict[str, Callable[[], Any]] = {
    "ask": lambda: Account.ref("alice").deposit.ask(10),
    "aask": lambda: asyncio.run(two_asks_at_once()),
    "result": lambda: Account.ref("alice").deposit.send(10).result(),
}


@pytest.mark.parametrize("verb", ASKS)
def test_a_waiting_call_outlives_all_connections(on_postgres: EntityCelery, postgres_url: str, verb: str) -> None:
    server = psycopg2.connect(postgres_url)
    server.autocommit = True
    with ThreadPoolExecutor(1) as pool, server.cursor() as cursor:
        answer = pool.submit(ASKS[verb])
        eventually(lambda: on_postgres.messages())

        for _ in range(3):
            cursor.execute(END_ALL)

        def answered() -> bool:
            # A send that lost its connection comes once more, later; a drain may lose its own.
            with suppress(StoreUnavailable):
                drain(on_postgres)
            return answer.done()

        assert eventually(answered)
        assert answer.result() == 10
    server.close()
