"""`options(connection=...)`: the message exists if and only if the caller's transaction commits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from entitycelery import EntityCelery
from entitycelery.exceptions import ConfigurationError, KeyConflict, MailboxFull
from entitycelery.storage.sql.url import driver_url
from tests.client.support import Account, Narrow, drain


@pytest.fixture
def engine(store_url: str, entities: EntityCelery) -> Iterator[Engine]:
    """The user's own engine on the same database, with a table of theirs."""
    made = create_engine(driver_url(store_url))
    with made.begin() as conn:
        conn.execute(text("CREATE TABLE orders (n integer)"))
    yield made
    made.dispose()


def orders(engine: Engine) -> int:
    with engine.connect() as conn:
        return int(conn.execute(text("SELECT count(*) FROM orders")).scalar_one())


@pytest.mark.parametrize("key", [None, "order-17"])
def test_a_commit_stores_the_message_together_with_the_callers_rows(
    entities: EntityCelery, engine: Engine, key: str | None
) -> None:
    with engine.connect() as conn:
        conn.execute(text("INSERT INTO orders VALUES (1)"))
        sent = Account.ref("alice").deposit.options(connection=conn, key=key).send(5)
        assert entities.messages() == []
        conn.commit()

    assert [m.id for m in entities.messages()] == [sent.id]
    assert orders(engine) == 1
    drain(entities)
    assert sent.result(timeout_s=5) == 5


@pytest.mark.parametrize("key", [None, "order-17"])
def test_a_rollback_stores_neither(entities: EntityCelery, engine: Engine, key: str | None) -> None:
    with engine.connect() as conn:
        Account.ref("alice").deposit.options(connection=conn, key=key).send(5)
        conn.execute(text("INSERT INTO orders VALUES (1)"))
        conn.rollback()

    assert entities.messages() == []
    assert orders(engine) == 0


def test_an_exception_in_the_callers_block_stores_neither(entities: EntityCelery, engine: Engine) -> None:
    def order_and_fail() -> None:
        with engine.begin() as conn:
            conn.execute(text("INSERT INTO orders VALUES (1)"))
            Account.ref("alice").deposit.options(connection=conn).send(5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        order_and_fail()

    assert entities.messages() == []
    assert orders(engine) == 0


@pytest.mark.parametrize("commit", [True, False])
def test_a_session_is_taken_as_well_as_a_connection(entities: EntityCelery, engine: Engine, commit: bool) -> None:
    with Session(engine) as session:
        session.execute(text("INSERT INTO orders VALUES (1)"))
        Account.ref("alice").deposit.options(connection=session).send(5)
        if commit:
            session.commit()

    assert (len(entities.messages()), orders(engine)) == ((1, 1) if commit else (0, 0))


def test_many_go_through_the_same_transaction(entities: EntityCelery, engine: Engine) -> None:
    with engine.connect() as conn:
        note = Account.ref("alice").note.options(connection=conn)
        entities.send_many([note.prepare(word) for word in "abc"])
        assert entities.messages() == []
        conn.commit()
    drain(entities)

    assert entities.state(Account.ref("alice")).log == ["a", "b", "c"]


def test_many_do_not_go_through_several_transactions(entities: EntityCelery, engine: Engine) -> None:
    with engine.connect() as conn, pytest.raises(ConfigurationError, match=r"the same options\(connection=\.\.\.\)"):
        entities.send_many(
            [
                Account.ref("alice").deposit.options(connection=conn).prepare(1),
                Account.ref("alice").deposit.prepare(1),
            ]
        )

    assert entities.messages() == []


def test_a_refused_send_leaves_the_callers_transaction_usable(entities: EntityCelery, engine: Engine) -> None:
    keyed = Account.ref("alice").deposit.options(key="k")
    keyed.send(5)
    for _ in range(2):
        Narrow.ref("n").add.send()

    with engine.connect() as conn:
        conn.execute(text("INSERT INTO orders VALUES (1)"))
        with pytest.raises(KeyConflict):
            keyed.options(connection=conn).send(6)
        with pytest.raises(MailboxFull):
            Narrow.ref("n").add.options(connection=conn).send()
        Account.ref("bob").deposit.options(connection=conn).send(7)
        conn.commit()

    assert orders(engine) == 1
    assert sorted(str(m.address) for m in entities.messages()) == [
        "Account/alice",
        "Account/bob",
        "Narrow/n",
        "Narrow/n",
    ]


def test_a_connection_to_another_database_is_refused(entities: EntityCelery) -> None:
    other = create_engine("sqlite://")

    with other.connect() as conn, pytest.raises(ConfigurationError, match=r"options\(connection=\.\.\.\) is of"):
        Account.ref("alice").deposit.options(connection=conn).send(5)


def test_a_key_on_a_stricter_isolation_level_is_refused(on_postgres: EntityCelery, postgres_url: str) -> None:
    strict = create_engine(driver_url(postgres_url), isolation_level="REPEATABLE READ")

    with strict.connect() as conn:
        with pytest.raises(ConfigurationError, match=r"needs READ COMMITTED.*REPEATABLE READ"):
            Account.ref("alice").deposit.options(connection=conn, key="k").send(5)
        conn.rollback()
        Account.ref("alice").deposit.options(connection=conn).send(5)
        conn.commit()

    assert len(on_postgres.messages()) == 1
    strict.dispose()
