"""From any user's spelling of a database to what the driver needs, and never a password in sight."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from entitycelery.exceptions import ConfigurationError, EntityError, StoreUnavailable
from entitycelery.storage.sql.url import driver_url, shown
from tests.storage.support import make_store

SECRET = "hunter2%21"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_means_psycopg2(scheme: str) -> None:
    url = driver_url(f"{scheme}://ann:{SECRET}@db.example:6543/shop?sslmode=require")

    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port) == ("ann", "hunter2!", "db.example", 6543)
    assert (url.database, dict(url.query)) == ("shop", {"sslmode": "require"})


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_a_relative_sqlite_path_is_made_absolute(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    url = driver_url(f"{scheme}:///data/shop.db")

    assert url.drivername == "sqlite+pysqlite"
    assert url.database == str(tmp_path / "data" / "shop.db")


def test_an_absolute_sqlite_path_stays_as_it_is() -> None:
    assert driver_url("sqlite:////var/lib/shop.db").database == "/var/lib/shop.db"


def test_a_sqlite_path_in_the_home_directory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert driver_url("sqlite:///~/shop.db").database == str(tmp_path / "shop.db")


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_sqlite_url_without_a_file_is_a_store_in_memory(text: str) -> None:
    assert driver_url(text).database == ":memory:"


@pytest.mark.parametrize("text", ["", "shop.db", "/var/lib/shop.db", "postgresql", "://", "postgresql://h:port/db"])
def test_what_is_no_url_is_refused_by_the_settings_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match="entity_database_url"):
        driver_url(text)


@pytest.mark.parametrize(
    "scheme", ["mysql", "mysql+pymysql", "oracle", "postgresql+psycopg", "postgresql+asyncpg", "sqlite+aiosqlite"]
)
def test_another_database_or_driver_is_refused_and_the_supported_ones_are_named(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match=r"supported are postgresql:// \(psycopg2\) and sqlite:///") as caught:
        driver_url(f"{scheme}://ann:{SECRET}@db.example/shop")

    assert scheme in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_shown_url_has_no_password_and_no_driver() -> None:
    assert shown(driver_url(f"postgres://ann:{SECRET}@db.example/shop")) == "postgresql://ann:***@db.example/shop"


@pytest.mark.parametrize("name", ["password", "sslpassword"])
def test_a_password_among_the_options_is_not_shown(name: str) -> None:
    url = driver_url(f"postgresql://db.example/shop?user=ann&{name}={SECRET}")

    assert url.query[name] == "hunter2!"
    assert shown(url) == "postgresql://db.example/shop?user=ann"


def test_a_store_shows_no_password() -> None:
    store = make_store(f"postgresql://ann:{SECRET}@db.example/shop")

    assert "db.example/shop" in repr(store)
    assert "hunter2" not in repr(store) + str(store)


@pytest.mark.parametrize("text", [f"nonsense {SECRET}", f"postgresql://ann:{SECRET}/shop"])
def test_a_bad_url_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        driver_url(text)

    assert "hunter2" not in "".join(traceback.format_exception(caught.value)).replace(text, "")


def test_a_database_that_does_not_answer_is_reported_without_its_password(postgres_url: str) -> None:
    nowhere = driver_url(postgres_url).set(port=1, password="hunter2").render_as_string(hide_password=False)
    store = make_store(nowhere, timeout_s=1)

    with pytest.raises(StoreUnavailable) as caught:
        store.schema.verify()

    told = str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        told += repr(error)
        error = error.__cause__
    assert "hunter2" not in told
    assert isinstance(caught.value, EntityError)
