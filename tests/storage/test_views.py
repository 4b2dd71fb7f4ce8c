"""One SQL view per entity type: its fields are typed columns that anybody can query."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from entitycelery import Entity, EntityCelery
from entitycelery.exceptions import ConfigurationError
from entitycelery.storage.sql.store import SqlStore
from tests.storage.support import SHARD, append, commit_of, message, opened, query

ACCOUNT = {"balance": "int", "rate": "float", "is_open": "bool", "owner": "text", "tags": "json"}
STATE = '{"balance": 12345678901, "rate": 1.5, "is_open": true, "owner": "Ann \'%s\'", "tags": ["a", 1]}'


@pytest.fixture
def views(durable: SqlStore) -> SqlStore:
    """A store with a view of accounts and one account."""
    durable.schema.make_views([("state_account", "Account", ACCOUNT)])
    store_state(durable, "ann", STATE)
    return durable


def store_state(store: SqlStore, entity_id: str, state: str | None, type_name: str = "Account") -> None:
    append(store, message(entity_id, type_name=type_name))
    with store.drain_session(SHARD) as session:
        [mailbox] = session.claim(1)
        session.commit([commit_of(mailbox, state=state)], last=True)


def test_a_view_shows_every_field_with_its_type(views: SqlStore) -> None:
    [row] = query(views, "SELECT entity_id, version, balance, rate, is_open, owner FROM {state_account}")

    assert row == ("ann", 1, 12345678901, 1.5, True, "Ann '%s'")
    assert [type(value) for value in row[2:4]] == [int, float]


def test_the_columns_of_a_view_have_the_databases_types(views: SqlStore) -> None:
    if views.dialect.name == "postgresql":
        kinds = query(
            views,
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'state_account' "
            "AND table_schema = :schema",
            schema="entity_conformance",
        )
        expected = {"balance": "bigint", "rate": "double precision", "is_open": "boolean", "owner": "text"}
        assert expected.items() <= dict(kinds).items()
        assert dict(kinds)["tags"] == "jsonb"
    else:
        kinds = query(
            views, "SELECT typeof(balance), typeof(rate), typeof(is_open), typeof(owner) FROM {state_account}"
        )
        assert kinds == [("integer", "real", "integer", "text")]


def test_values_inside_a_json_field_can_be_queried(views: SqlStore) -> None:
    first = "tags ->> 0" if views.dialect.name == "postgresql" else "json_extract(tags, '$[0]')"

    assert query(views, f"SELECT {first} FROM {{state_account}}") == [("a",)]  # noqa: S608 - a constant of ours


def test_a_view_can_be_filtered_and_summed_up(views: SqlStore) -> None:
    store_state(views, "bob", '{"balance": 5, "is_open": false}')

    assert query(views, "SELECT sum(balance) FROM {state_account} WHERE NOT is_open") == [(5,)]


def test_a_field_that_an_older_state_lacks_is_null(views: SqlStore) -> None:
    store_state(views, "old", "{}")

    assert query(views, "SELECT balance, owner FROM {state_account} WHERE entity_id = 'old'") == [(None, None)]


def test_a_view_shows_neither_deleted_entities_nor_other_types(views: SqlStore) -> None:
    store_state(views, "gone", "{}")
    store_state(views, "gone", None)
    store_state(views, "ann", "{}", type_name="Card")

    assert query(views, "SELECT entity_id FROM {state_account}") == [("ann",)]


def test_a_view_is_made_anew_when_the_fields_change(views: SqlStore) -> None:
    store_state(views, "new", '{"owner": 7, "joined": "2026"}')

    views.schema.make_views([("state_account", "Account", {"joined": "text", "owner": "int"})])

    assert query(views, "SELECT joined, owner FROM {state_account} WHERE entity_id = 'new'") == [("2026", 7)]
    with pytest.raises(Exception, match="balance"):
        query(views, "SELECT balance FROM {state_account}")


# As registered


@pytest.fixture
def entities(store_url: str) -> Iterator[EntityCelery]:
    with opened(store_url):
        made = EntityCelery(Celery("views", broker="memory://", set_as_current=False))
        made.override(database_url=store_url, cluster="conformance", shards_per_group=4)
        yield made
        made.close()


def columns_of(entities: EntityCelery, view: str) -> dict[str, Any]:
    with entities.store.engines.use("looking") as conn:
        result = conn.exec_driver_sql(str(entities.store.dialect.sql(f"SELECT * FROM {{{view}}}")))  # noqa: S608
        return {column[0]: column[1] for column in result.cursor.description}


def test_every_registered_type_gets_a_view_of_its_fields(entities: EntityCelery) -> None:
    class Account(Entity):
        balance: int = 0
        rate: float = 0.0
        is_open: bool = True
        owner: str | None = None
        tags: list[str] = []

    class Card(Entity):
        number: str = ""

    entities.register(Account)
    entities.register(Card)

    assert sorted(entities.make_views()) == ["state_account", "state_card"]

    base = ["entity_id", "version", "updated_at"]
    assert list(columns_of(entities, "state_account")) == [*base, "balance", "rate", "is_open", "owner", "tags"]
    assert list(columns_of(entities, "state_card")) == [*base, "number"]


def test_fields_may_be_called_like_columns_of_the_table(entities: EntityCelery) -> None:
    class Order(Entity):
        id: int = 0
        state: str = ""
        type: str = ""
        status: str = ""
        user: str = ""

    entities.register(Order)
    entities.make_views()
    store_state(entities.store, "o", '{"id": 7, "state": "open", "type": "big", "user": "ann"}', type_name="Order")

    with entities.store.engines.use("looking") as conn:
        named = entities.store.dialect.sql('SELECT id, state, type, "user" FROM {state_order}')
        assert [tuple(row) for row in conn.exec_driver_sql(str(named))] == [(7, "open", "big", "ann")]


def test_a_field_called_like_a_column_of_every_view_stands_beside_it(durable: SqlStore) -> None:
    fields = {"version": "text", "entity_id": "int", "updated_at": "text"}
    durable.schema.make_views([("state_release", "Release", fields)])

    store_state(durable, "r", '{"version": "2.0", "entity_id": 7, "updated_at": "now"}', type_name="Release")

    rows = query(durable, "SELECT entity_id, version, entity_id_, version_, updated_at_ FROM {state_release}")
    assert rows == [("r", 1, 7, "2.0", "now")]


def test_two_types_that_would_share_a_view_are_told(entities: EntityCelery) -> None:
    entities.register(name="shop.Account")(type("A", (Entity,), {"__module__": __name__}))
    entities.register(name="shop_account")(type("B", (Entity,), {"__module__": __name__}))

    with pytest.raises(ConfigurationError, match="share the view 'state_shop_account'"):
        entities.make_views()
