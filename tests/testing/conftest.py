"""The kit as a user of it has it: an app whose broker and database are not there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from entitycelery import EntityCelery
from entitycelery.testing import EntityTestEnvironment
from tests.testing.shop import register

START = datetime(2030, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def shop() -> Iterator[Any]:
    """The entities of a shop; nothing listens where its settings say."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="amqp://guest@127.0.0.1:1//", entity_database_url="postgresql://nobody@127.0.0.1:1/nowhere"
    )
    entities = EntityCelery(app)
    yield register(entities)
    app.close()


@pytest.fixture
def env(shop: Any) -> Iterator[EntityTestEnvironment]:
    with EntityTestEnvironment(shop.entities, start=START) as entered:
        yield entered
