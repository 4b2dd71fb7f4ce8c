"""Projects on every store, with and without a worker; each store has one of each for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from tests.cli.support import WAITING, Project
from tests.conftest import url_or_skip
from tests.services import Services, fresh_postgres_database

STORES = ["sqlite", "postgresql"]


@pytest.fixture(scope="session", params=STORES)
def idle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, services: Services
) -> Iterator[Project]:
    """A project whose schema is there, and no worker: what is sent stays pending."""
    with ExitStack() as stack:
        project = make_project(request.param, f"idle_{request.param}", tmp_path_factory, services, stack)
        assert project("db", "upgrade").code == 0
        yield project


@pytest.fixture(scope="session", params=STORES)
def bank(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, services: Services
) -> Iterator[Project]:
    """A project with one real worker."""
    with ExitStack() as stack:
        project = make_project(request.param, f"bank_{request.param}", tmp_path_factory, services, stack)
        assert project("db", "upgrade").code == 0
        stack.enter_context(project.worker())
        yield project


@pytest.fixture(scope="session", params=STORES)
def waiting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, services: Services
) -> Iterator[Project]:
    """A project with one real worker, and with entities and workflows that wait."""
    with ExitStack() as stack:
        name = f"waiting_{request.param}"
        project = make_project(request.param, name, tmp_path_factory, services, stack, more=WAITING)
        assert project("db", "upgrade").code == 0
        stack.enter_context(project.worker())
        yield project


@pytest.fixture
def wish() -> str:
    """A wish that no other test has."""
    # Not digits alone: as an argument that would be a number.
    return f"Wish/w{uuid4().hex[:12]}"


@pytest.fixture(params=STORES)
def fresh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, services: Services
) -> Iterator[Project]:
    """A project whose store holds nothing yet."""
    with ExitStack() as stack:
        yield make_project(request.param, f"fresh_{uuid4().hex[:8]}", tmp_path_factory, services, stack)


def make_project(
    store: str,
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    services: Services,
    stack: ExitStack,
    more: str = "",
) -> Project:
    folder = tmp_path_factory.mktemp(name)
    url = f"sqlite:///{folder / 'store.db'}"
    if store == "postgresql":
        url = stack.enter_context(fresh_postgres_database(url_or_skip(services.postgres())))
    project = Project(name, folder, url)
    project.write(cluster=f"t_{uuid4().hex[:10]}", more=more)
    return project


@pytest.fixture
def address() -> str:
    """An account that no other test uses."""
    return f"Account/{uuid4().hex[:12]}"
