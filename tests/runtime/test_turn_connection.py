"""`self.turn.connection`: the user's own SQL commits with the turn, or not at all."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine, text

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError
from entitycelery.message import Reply
from entitycelery.runtime.drain import LONG_TURN_S
from tests.client.support import Account, drain
from tests.runtime.support import HOOKS, Puppet, make_puppets
from tests.storage.support import change, query

puppet = Puppet.ref


def with_ledger(entities: EntityCelery) -> None:
    change(entities.store, f"CREATE TABLE {entities.store.dialect.table('ledger')} (n integer)")


def ledger(entities: EntityCelery) -> list[int]:
    return [n for (n,) in query(entities.store, "SELECT n FROM {ledger} ORDER BY n")]


def write(self: Puppet, entities: EntityCelery, n: int) -> None:
    self.turn.connection.execute(text(f"INSERT INTO {entities.store.dialect.table('ledger')} VALUES ({n})"))  # noqa: S608


def test_what_a_handler_writes_on_its_turns_connection_commits_with_the_turn(entities: EntityCelery) -> None:
    with_ledger(entities)

    def book(self: Puppet) -> None:
        self.count += 1
        write(self, entities, self.count)
        Account.ref("alice").deposit.send(5)
        assert ledger(entities) == list(range(1, self.count)), "not before the commit"

    HOOKS["book"] = book
    entities.send_many([puppet("p").act.prepare("book") for _ in range(3)])

    drain(entities)

    assert ledger(entities) == [1, 2, 3]
    assert entities.state(puppet("p")).count == 3
    assert entities.state(Account.ref("alice")).balance == 15


def test_finished_turns_are_committed_before_the_transaction(store_url: str, cluster_name: str) -> None:
    entities = make_puppets(store_url, cluster_name, batch_budget_s=60)
    with_ledger(entities)
    seen: list[Reply | None] = []

    def book(self: Puppet) -> None:
        write(self, entities, 1)
        seen.append(entities.reply(finished.id))

    HOOKS["book"] = book
    finished, _ = entities.send_many([puppet("p").add.prepare(1), puppet("p").act.prepare("book")])

    drain(entities)

    assert [reply.status for reply in seen if reply is not None] == ["done"]
    assert ledger(entities) == [1]
    entities.close()


def test_long_turn_with_its_own_transaction_is_not_in_its_drains_way(
    entities: EntityCelery, caplog: pytest.LogCaptureFixture
) -> None:
    with_ledger(entities)

    def book_slowly(self: Puppet) -> None:
        write(self, entities, 1)
        time.sleep(3 * LONG_TURN_S)

    HOOKS["slow"] = book_slowly
    # In one batch: what has not begun could be given back while the turn holds SQLite's write lock.
    entities.send_many([puppet("p").act.prepare("slow"), *(puppet(f"q{n}").add.prepare(1) for n in range(10))])

    drain(entities)

    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert ledger(entities) == [1]
    assert [entities.state(puppet(f"q{n}")).count for n in range(10)] == [1] * 10


def test_what_a_failed_handler_wrote_on_its_turns_connection_is_gone(entities: EntityCelery) -> None:
    with_ledger(entities)

    def book_and_fail(self: Puppet) -> None:
        write(self, entities, 1)
        raise LookupError

    HOOKS["fail"] = book_and_fail
    before, failed, after = puppet("p").add.send(1), puppet("p").act.send("fail"), puppet("p").add.send(1)

    drain(entities)

    assert ledger(entities) == []
    assert (before.result(timeout_s=5), after.result(timeout_s=5)) == (1, 2)
    with pytest.raises(LookupError):
        failed.result(timeout_s=5)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_turns_connection_cannot_be_ended_by_the_handler(entities: EntityCelery, end: str) -> None:
    with_ledger(entities)

    def book_and_end(self: Puppet) -> None:
        write(self, entities, 1)
        getattr(self.turn.connection, end)()

    HOOKS["end"] = book_and_end
    sent = puppet("p").act.send("end")

    drain(entities)

    with pytest.raises(ConfigurationError, match=r"self\.turn\.connection is"):
        sent.result(timeout_s=5)
    assert ledger(entities) == []


def test_a_stale_turn_with_a_connection_loses_and_runs_again(entities: EntityCelery) -> None:
    with_ledger(entities)
    runs: list[int] = []

    def book(self: Puppet) -> None:
        runs.append(1)
        if len(runs) == 1:
            change(entities.store, "UPDATE {state} SET version = version + 1 WHERE entity_id = 'p'")
        write(self, entities, len(runs))

    HOOKS["book"] = book
    puppet("p").add.send(1)
    drain(entities)
    sent = puppet("p").act.send("book")

    drain(entities)

    assert sent.result(timeout_s=5) is None
    assert ledger(entities) == [2]


def test_a_turn_that_gets_no_connection_has_not_failed(postgres_url: str, cluster_name: str) -> None:
    entities = make_puppets(postgres_url, cluster_name, connections=2, send_timeout_s=0.2)
    with_ledger(entities)
    taken: list[object] = []

    def book(self: Puppet) -> None:
        if not taken:
            # Beside the drain's own, the last one there is.
            taken.append(stack.enter_context(entities.store.engines.of("drain").connect()))  # type: ignore[attr-defined]
        else:
            stack.close()
        write(self, entities, 1)

    HOOKS["book"] = book
    with ExitStack() as stack:
        sent = puppet("p").act.send("book")
        drain(entities)

        assert sent.result(timeout_s=5) is None
    assert len(taken) == 1
    assert ledger(entities) == [1]
    entities.close()


def test_a_row_that_is_held_elsewhere_does_not_hold_the_drain_up(postgres_url: str, cluster_name: str) -> None:
    entities = make_puppets(postgres_url, cluster_name)
    with_ledger(entities)
    engine = create_engine(entities.store.url)  # type: ignore[attr-defined]
    runs: list[int] = []

    def book(self: Puppet) -> None:
        runs.append(1)
        if len(runs) == 1:
            other = stack.enter_context(engine.begin())
            message = entities.store.dialect.table("message")  # type: ignore[attr-defined]
            other.exec_driver_sql(f"SELECT 1 FROM {message} FOR UPDATE")  # noqa: S608
        else:
            stack.close()
        write(self, entities, len(runs))

    HOOKS["book"] = book
    with ExitStack() as stack:
        sent = puppet("p").act.send("book")
        drain(entities)

        assert sent.result(timeout_s=5) is None
    assert ledger(entities) == [2]
    engine.dispose()
    entities.close()
