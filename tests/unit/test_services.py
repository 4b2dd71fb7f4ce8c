"""The servers that tests run against: each is real, empty at first, and never silently missing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import kombu
import psycopg2
import pytest
import redis

from tests import conftest, faked_clock
from tests.conftest import url_or_skip
from tests.embedded_postgres import EmbeddedPostgres
from tests.services import POSTGRES_VARIABLE, Service, Services, fresh_postgres_database
from tests.waiting import eventually


def query(url: str, statement: str) -> object:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
            return row and row[0]
    finally:
        connection.close()


def test_postgres_database_is_empty_and_its_own(postgres_url: str) -> None:
    tables = query(postgres_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")

    assert tables == 0
    assert query(postgres_url, "SELECT current_database()") == postgres_url.rpartition("/")[2]


def test_database_is_dropped_though_somebody_is_connected(services: Services) -> None:
    server = url_or_skip(services.postgres())

    with fresh_postgres_database(server) as url:
        left_open = psycopg2.connect(url)
    left_open.close()

    name = url.rpartition("/")[2]
    assert query(server, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == 0  # noqa: S608


def test_store_url_names_each_store(store_url: str, request: pytest.FixtureRequest) -> None:
    assert store_url.split(":")[0] in request.node.name


def test_redis_database_is_empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 1  # our marker


def test_amqp_answers(amqp_url: str) -> None:
    with kombu.Connection(amqp_url) as connection:
        connection.connect()

        assert connection.connected


def test_cluster_name_is_short_and_plain(cluster_name: str) -> None:
    assert re.fullmatch(r"[a-z0-9_]{1,16}", cluster_name)


def test_folder_broker_is_an_empty_directory(folder_broker: Path) -> None:
    assert list(folder_broker.iterdir()) == []


def test_missing_service_skips_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(conftest.STRICT_VARIABLE, raising=False)

    with pytest.raises(pytest.skip.Exception, match="Redis: not here"):
        url_or_skip(Service("Redis", "nowhere", missing="not here"))


def test_missing_service_fails_where_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(conftest.STRICT_VARIABLE, "1")

    with pytest.raises(pytest.fail.Exception, match="Redis is required: not here"):
        url_or_skip(Service("Redis", "nowhere", missing="not here"))


def test_missing_faketime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faked_clock, "LIBRARIES", ())

    service = Services().faketime()

    assert service.url is None
    assert "libfaketime is not installed" in str(service)


def test_missing_pgbouncer_is_named(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    url_or_skip(services.postgres())
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    service = Services().pgbouncer()

    assert service.url is None
    assert "pgbouncer is not installed" in str(service)


def test_unreachable_server_is_reported_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, "postgresql://user:secret@127.0.0.1:1/x")

    service = Services().postgres()

    assert service.url is None
    assert POSTGRES_VARIABLE in str(service)
    assert "secret" not in str(service)


def test_embedded_postgres_starts_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, "embedded")
    services = Services()
    service = services.postgres()
    url = url_or_skip(service)

    with fresh_postgres_database(url) as fresh:
        answer = query(fresh, "SELECT 40 + 2")
        data = Path(str(query(fresh, "SHOW data_directory")))
    services.close()

    assert answer == 42
    assert not data.exists()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(url, connect_timeout=1)


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_an_embedded_version_that_is_not_installed_is_missing_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POSTGRES_VARIABLE, "embedded-99")

    service = Services().postgres()

    assert service.url is None
    assert str(service).startswith("PostgreSQL 99: skipped, ENTITY_TEST_POSTGRES_URL=embedded-99; there is no")


def test_embedded_postgres_dies_with_a_killed_owner() -> None:
    program = "from tests.embedded_postgres import EmbeddedPostgres as E; print(E().start(), flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    data = Path(str(query(url, "SHOW data_directory")))

    owner.send_signal(signal.SIGKILL)
    owner.communicate()

    # The last thing that a server removes.
    eventually(lambda: not (data / "postmaster.pid").exists())
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(url, connect_timeout=1)
    shutil.rmtree(data.parent)


def test_stopping_a_server_that_never_started_is_harmless() -> None:
    EmbeddedPostgres().stop()


def test_eventually_returns_the_first_true_value() -> None:
    answers = iter([None, 0, "yes"])

    assert eventually(lambda: next(answers), every_s=0) == "yes"


def test_eventually_reports_the_last_failure() -> None:
    def check() -> bool:
        raise ValueError("still red")

    with pytest.raises(AssertionError, match="ValueError: still red"):
        eventually(check, timeout_s=0.01)


def test_strict_mode_is_what_continuous_integration_sets() -> None:
    script = Path(__file__).parents[2] / ".ci" / "run"

    # Unless somebody sets it to 0, to see by name what would be skipped.
    name = conftest.STRICT_VARIABLE
    assert f"export {name}=${{{name}:-1}}" in script.read_text()
    assert os.access(script, os.X_OK)
