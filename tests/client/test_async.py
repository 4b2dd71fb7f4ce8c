"""Sending and asking from an event loop, which is never blocked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, ReplyTimeout, UnknownMessage
from entitycelery.message import Reply
from tests.client.support import Account, InsufficientFundsError, drain, make_entities, serving


def test_a_waiting_ask_leaves_the_loop_free(entities: EntityCelery) -> None:
    async def ask_while_draining() -> int:
        asked = asyncio.create_task(Account.ref("alice").deposit.aask(5))
        # Nobody else drains: were the loop blocked by the ask, this would never begin.
        while not asked.done():
            await asyncio.to_thread(drain, entities)
        return await asked

    assert asyncio.run(asyncio.wait_for(ask_while_draining(), 60)) == 5


def test_a_send_that_has_to_wait_leaves_the_loop_free(
    on_postgres: EntityCelery, postgres_url: str, cluster_name: str
) -> None:
    blocker = psycopg2.connect(postgres_url)
    with blocker.cursor() as cursor:
        cursor.execute(f"LOCK TABLE entity_{cluster_name}.message IN ACCESS EXCLUSIVE MODE")

    async def send_twice() -> None:
        asked = asyncio.create_task(Account.ref("alice").deposit.options(timeout_s=0.05).aask(5))
        sent = asyncio.create_task(Account.ref("alice").deposit.asend(5))
        assert await asyncio.wait({asked, sent}, timeout=0.3) == (set(), {asked, sent})
        # Only this loop lets them go on.
        blocker.rollback()
        assert (await sent).id
        with pytest.raises(ReplyTimeout):
            await asked

    asyncio.run(send_twice())
    blocker.close()


def test_an_error_of_the_look_for_replies_is_raised_by_everyone_who_waits(
    entities: EntityCelery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ids: list[str]) -> dict[str, Reply]:
        raise ZeroDivisionError(f"{len(ids)} looked for")

    monkeypatch.setattr(entities.store, "replies", fail)

    async def ask_twice() -> list[BaseException | int]:
        asks = [Account.ref(owner).deposit.aask(5) for owner in ("alice", "bob")]
        return await asyncio.gather(*asks, return_exceptions=True)

    failures = asyncio.run(asyncio.wait_for(ask_twice(), 30))
    assert [type(failure) for failure in failures] == [ZeroDivisionError, ZeroDivisionError]


def test_asend_and_aresult(entities: EntityCelery) -> None:
    async def both() -> tuple[int, int]:
        sent = await Account.ref("alice").deposit.asend(5)
        await asyncio.to_thread(drain, entities)
        return await sent.aresult(timeout_s=30), await sent.aresult()

    assert asyncio.run(both()) == (5, 5)


def test_a_handlers_exception_is_raised_where_it_is_awaited(entities: EntityCelery) -> None:
    with serving(entities), pytest.raises(InsufficientFundsError):
        asyncio.run(Account.ref("alice").withdraw.aask(5))


def test_an_ask_that_is_not_answered_in_time_leaves_its_message_stored(entities: EntityCelery) -> None:
    with pytest.raises(ReplyTimeout):
        asyncio.run(Account.ref("alice").deposit.options(timeout_s=0.05).aask(5))

    assert len(entities.messages()) == 1


def test_an_unknown_message_is_unknown_to_a_loop_too(entities: EntityCelery) -> None:
    with pytest.raises(UnknownMessage):
        asyncio.run(entities.client.aresult("never-sent", 0.05))


def test_a_cancelled_ask_leaves_its_message_stored_and_others_waiting(entities: EntityCelery) -> None:
    async def cancel_one_of_two() -> int:
        alice, bob = (asyncio.create_task(Account.ref(name).deposit.aask(5)) for name in ("alice", "bob"))
        while len(await asyncio.to_thread(entities.messages)) < 2:
            await asyncio.sleep(0)
        alice.cancel()
        with pytest.raises(asyncio.CancelledError):
            await alice
        await asyncio.to_thread(drain, entities)
        return await bob

    assert asyncio.run(asyncio.wait_for(cancel_one_of_two(), 60)) == 5
    assert entities.state(Account.ref("alice")).balance == 5


def test_an_ask_on_the_callers_connection_is_refused(entities: EntityCelery) -> None:
    with pytest.raises(ConfigurationError, match="use send, commit, and then"):
        asyncio.run(Account.ref("alice").deposit.options(connection="mine").aask(5))


def test_several_loops_one_after_the_other(entities: EntityCelery) -> None:
    with serving(entities):
        assert [asyncio.run(Account.ref("alice").deposit.aask(1)) for _ in range(3)] == [1, 2, 3]


def test_a_thousand_asks_at_once_on_one_loop(entities: EntityCelery) -> None:
    async def ask_all() -> list[int]:
        return await asyncio.gather(*(Account.ref(n).deposit.options(timeout_s=60).aask(n) for n in range(1000)))

    with serving(entities):
        assert asyncio.run(ask_all()) == list(range(1000))


@contextmanager
def most_connections(url: str) -> Iterator[list[int]]:
    """Afterwards, the largest number of other sessions of the database that was seen."""
    stop, most = threading.Event(), [0]
    watching = psycopg2.connect(url)
    watching.autocommit = True

    def watch() -> None:
        while not stop.wait(0.02):
            with watching.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
                most[0] = max(most[0], cursor.fetchone()[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join(30)
        watching.close()


def test_many_asks_on_one_loop_use_few_connections(postgres_url: str, cluster_name: str) -> None:
    entities = make_entities(postgres_url, cluster_name, connections=4)

    async def ask_all() -> None:
        await asyncio.gather(*(Account.ref(n).deposit.options(timeout_s=60).aask(n) for n in range(300)))

    with most_connections(postgres_url) as most, serving(entities):
        asyncio.run(ask_all())
    entities.close()

    # Four for sending, one that listens for the whole loop, one of the drain.
    assert 0 < most[0] <= 6
