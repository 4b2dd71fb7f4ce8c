"""Boxes on every store. One store serves all tests of a module and is emptied before each; making one takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from entitycelery import EntityCelery
from tests.conftest import url_or_skip
from tests.fuzz.support import MISCHIEF, Box, empty, make_boxes
from tests.services import Services, fresh_postgres_database


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(
    request: pytest.FixtureRequest, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EntityCelery]:
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'entities.db'}"
        if request.param == "postgresql":
            url = stack.enter_context(fresh_postgres_database(url_or_skip(services.postgres())))
        made = make_boxes(url, f"t_{uuid4().hex[:10]}", deploy_window_s=0)
        stack.callback(made.close)
        yield made


@pytest.fixture
def entities(store: EntityCelery) -> EntityCelery:
    """Nobody waits for other code: what this code does not know is a dead letter at once."""
    store.register(Box)
    empty(store)
    return store


@pytest.fixture(autouse=True)
def no_mischief_is_left() -> Iterator[None]:
    yield
    MISCHIEF.clear()
