"""Workflows in an environment without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from entitycelery import Entity, EntityCelery, handler
from entitycelery.testing import EntityTestEnvironment
from tests.workflows.acts import DONE

START = datetime(2030, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    DONE.clear()


@pytest.fixture
def entities() -> Iterator[EntityCelery]:
    app = Celery("shop", set_as_current=False)
    yield EntityCelery(app)
    app.close()


@pytest.fixture
def env(entities: EntityCelery) -> Iterator[EntityTestEnvironment]:
    with EntityTestEnvironment(entities, start=START) as entered:
        yield entered


@pytest.fixture
def account(entities: EntityCelery) -> type[Any]:
    """An entity that answers, fails, or thinks until the signal `idea`."""

    @entities.register
    class Account(Entity):
        balance: int = 0

        @handler
        def deposit(self, amount: int) -> int:
            if amount < 0:
                raise ValueError(f"no {amount}")
            self.balance += amount
            return self.balance

        @handler
        def think(self) -> int:
            self.expect("idea", then=self.speak)
            return self.reply_later()

        @handler
        def speak(self, idea: int) -> int:
            return idea

    return Account
