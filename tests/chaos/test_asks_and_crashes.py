"""An ask does not wait for the disk before its turn has committed: a PostgreSQL that crashes may lose its message, and
never an answer, nor a message that somebody was told is stored.

The server writes its log as late as it can, so that a crash at any moment loses what nobody waited for. Each body also
runs with one rule broken, and must then lose a message.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from entitycelery import EntityCelery
from entitycelery.exceptions import ReplyTimeout, StoreUnavailable
from tests.chaos.servers import execute, own_postgres
from tests.client.support import Account, drain, make_entities
from tests.embedded_postgres import EmbeddedPostgres
from tests.services import fresh_postgres_database
from tests.storage.support import message, opened, query
from tests.waiting import eventually

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def lazy_server() -> Iterator[tuple[EmbeddedPostgres, str]]:
    """A PostgreSQL whose log is written by who waits for it, and hardly ever by itself."""
    server, url = own_postgres()
    execute(url, "ALTER SYSTEM SET wal_writer_delay = '10s'", "ALTER SYSTEM SET autovacuum = off")
    execute(url, "SELECT pg_reload_conf()")
    yield server, url
    server.stop()


@pytest.fixture
def server(lazy_server: tuple[EmbeddedPostgres, str]) -> EmbeddedPostgres:
    return lazy_server[0]


@pytest.fixture
def entities(lazy_server: tuple[EmbeddedPostgres, str], cluster_name: str) -> Iterator[EntityCelery]:
    with fresh_postgres_database(lazy_server[1]) as url:
        entities = make_entities(url, cluster_name, ask_timeout_s=60)
        Account.ref("alice").deposit.send(1)
        drain(entities)
        yield entities
        entities.close()


def crash(server: EmbeddedPostgres) -> None:
    server.halt(signal.SIGQUIT)
    server.launch()


def is_pending(entities: EntityCelery) -> bool:
    """Whether any message is there, once the database answers again."""

    def look() -> list[tuple[int]] | None:
        try:
            return query(entities.store, "SELECT count(*) FROM {message}")  # type: ignore[return-value]
        except StoreUnavailable:
            return None

    [(count,)] = eventually(look)
    return count > 0


@pytest.mark.parametrize("how", ["unflushed", "unflushed and asked", "flushed later", "as every send"])
def test_a_crash_loses_only_what_nobody_waited_for(server: EmbeddedPostgres, entities: EntityCelery, how: str) -> None:
    with opened(str(entities.store.url.render_as_string(hide_password=False)), cluster=entities.store.cluster) as store:
        sent = message("a")
        if how == "unflushed":
            store.append_unflushed(sent, nonce="n")
        elif how == "unflushed and asked":
            store.append_and_ask(sent, nonce="n", flushed=False)
        elif how == "flushed later":
            store.append_unflushed(sent, nonce="n")
            store.flush()
        else:
            store.append([sent], nonce="n")

        crash(server)

        assert is_pending(entities) == (not how.startswith("unflushed"))


def test_an_ask_whose_message_a_crash_has_lost_is_answered(server: EmbeddedPostgres, entities: EntityCelery) -> None:
    alice = Account.ref("alice")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: alice.deposit.ask(5))
        eventually(lambda: is_pending(entities))

        crash(server)

        # It stores its message again; until then there is nothing to handle.
        eventually(lambda: is_pending(entities))
        with suppress(StoreUnavailable):
            # Its connection is of before the crash.
            drain(entities)
        drain(entities)
        assert asked.result(30) == 6
    assert entities.state(alice).balance == 6


def test_a_turn_that_has_committed_keeps_the_message_it_answered(
    server: EmbeddedPostgres, entities: EntityCelery
) -> None:
    alice = Account.ref("alice")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: alice.deposit.ask(5))
        eventually(lambda: is_pending(entities))
        drain(entities)

        crash(server)

        assert asked.result(30) == 6
        assert not is_pending(entities)
    assert entities.state(alice).balance == 6


def time_out(verb: str = "ask") -> None:
    call = Account.ref("alice").deposit.options(timeout_s=0.05)
    with pytest.raises(ReplyTimeout, match="is stored and not answered"):
        call.ask(5) if verb == "ask" else asyncio.run(call.aask(5))


@pytest.mark.parametrize("verb", ["ask", "aask"])
def test_a_message_of_which_an_ask_said_that_it_is_stored_is_stored(
    server: EmbeddedPostgres, entities: EntityCelery, verb: str
) -> None:
    time_out(verb)

    crash(server)

    assert is_pending(entities)


def test_if_an_ask_did_not_wait_for_the_disk_in_the_end_its_message_could_be_lost(
    server: EmbeddedPostgres, entities: EntityCelery
) -> None:
    entities.store.dialect.flush = ""
    time_out()

    crash(server)

    assert not is_pending(entities)
