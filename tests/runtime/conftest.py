"""Puppets on every store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from entitycelery import EntityCelery
from tests.emptied_postgres import postgres_database, postgres_url
from tests.runtime.support import HOOKS, make_puppets

__all__ = ["postgres_database", "postgres_url"]


@pytest.fixture
def entities(store_url: str, cluster_name: str) -> Iterator[EntityCelery]:
    made = make_puppets(store_url, cluster_name)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_hooks_are_left() -> Iterator[None]:
    yield
    HOOKS.clear()
