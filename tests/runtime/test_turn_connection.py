"""`self.turn.connection`: the user's own SQL commits with the turn, or not at all."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError
from tests.client.support import Account, drain
from tests.runtime.support import HOOKS, Puppet
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
