"""The bank on every store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entitycelery import EntityCelery
from tests.client.support import make_entities
from tests.emptied_postgres import postgres_database, postgres_url

__all__ = ["postgres_database", "postgres_url"]


@pytest.fixture
def entities(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    made = make_entities(store_url, cluster_name)
    yield made
    made.close()


@pytest.fixture
def on_postgres(postgres_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    made = make_entities(postgres_url, cluster_name)
    yield made
    made.close()
