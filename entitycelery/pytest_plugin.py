"""Fixtures for users' tests: `entity_env`, `workflow_env` and `entity_crashes`; found through the entry point.

They serve the entities of the current app. A project with several of them overrides the fixture `entity_app`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from entitycelery import EntityCelery
    from entitycelery.testing import EntityTestEnvironment, WorkflowTestEnvironment


@pytest.fixture
def entity_app() -> EntityCelery:
    """The `EntityCelery` under test: that of the current app."""
    # Not before a test wants it: pytest imports this module in every run.
    from entitycelery.app import current_entities  # noqa: PLC0415

    return current_entities()


@pytest.fixture
def entity_env(entity_app: EntityCelery) -> Iterator[EntityTestEnvironment]:
    """An `EntityTestEnvironment` that is entered."""
    from entitycelery.testing import EntityTestEnvironment  # noqa: PLC0415

    with EntityTestEnvironment(entity_app) as env:
        yield env


@pytest.fixture
def workflow_env(entity_app: EntityCelery) -> Iterator[WorkflowTestEnvironment]:
    """A `WorkflowTestEnvironment` that is entered."""
    from entitycelery.testing import WorkflowTestEnvironment  # noqa: PLC0415

    with WorkflowTestEnvironment(entity_app) as env:
        yield env


@pytest.fixture
def entity_crashes(entity_app: EntityCelery) -> Callable[[Callable[[EntityTestEnvironment], object]], int]:
    """`crash_everywhere` of these entities: call it with the test."""
    from entitycelery.testing import crash_everywhere  # noqa: PLC0415

    return lambda test: crash_everywhere(entity_app, test)
