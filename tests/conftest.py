"""Servers and names for every test.

A missing server skips the test, by name; with ENTITY_TEST_STRICT=1 it fails it. The end of the run says which
servers were used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.services import Service, Services, by_way_of, flush_redis_database, fresh_postgres_database

STRICT_VARIABLE = "ENTITY_TEST_STRICT"
SERVICES = pytest.StashKey[Services]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVICES] = Services()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVICES].close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[SERVICES].found
    if not found:
        return
    terminalreporter.section("services")
    for service in found.values():
        terminalreporter.line(str(service))


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> Services:
    return pytestconfig.stash[SERVICES]


def url_or_skip(service: Service) -> str:
    """The service's URL; without one the test is skipped, or failed where skipping is not allowed."""
    if service.url is not None:
        return service.url
    if os.environ.get(STRICT_VARIABLE) == "1":
        pytest.fail(f"{service.name} is required: {service.missing}", pytrace=False)
    pytest.skip(f"{service.name}: {service.missing}")


@pytest.fixture
def postgres_url(services: Services) -> Iterator[str]:
    """A fresh, empty PostgreSQL database."""
    with fresh_postgres_database(url_or_skip(services.postgres())) as url:
        yield url


@pytest.fixture
def pooled_url(services: Services, postgres_url: str) -> str:
    """The same PostgreSQL database, by way of PgBouncer in transaction mode."""
    return by_way_of(url_or_skip(services.pgbouncer()), postgres_url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'entities.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """Every store in turn: one body of tests for all databases."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def redis_url(services: Services) -> str:
    """An empty Redis database that no other run uses."""
    url = url_or_skip(services.redis())
    flush_redis_database(url)
    return url


@pytest.fixture
def amqp_url(services: Services) -> str:
    """RabbitMQ, shared: keep apart by `cluster_name`."""
    return url_or_skip(services.amqp())


@pytest.fixture
def folder_broker(tmp_path: Path) -> Path:
    """An empty directory for the folder transport."""
    folder = tmp_path / "broker"
    folder.mkdir()
    return folder


@pytest.fixture
def cluster_name() -> str:
    """A cluster that no other test or run has."""
    return f"t_{uuid4().hex[:10]}"
