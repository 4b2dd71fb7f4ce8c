"""A statement on SQLite waits for another connection's transaction, for so long and no longer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from entitycelery.storage.sql.dialects.patience import PatientConnection
from entitycelery.storage.sql.dialects.sqlite import SQLite
from entitycelery.storage.sql.url import driver_url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "file.db", isolation_level=None) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE word (word TEXT)")
    return tmp_path / "file.db"


@pytest.fixture
def writer(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection in the middle of a transaction that writes."""
    conn = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO word VALUES ('first')")
    yield conn
    conn.close()


def patient(file: Path, timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        file, timeout=timeout_s, isolation_level=None, check_same_thread=False, factory=PatientConnection
    )


def words(file: Path) -> list[str]:
    return [row[0] for row in patient(file, 0).execute("SELECT word FROM word")]


def test_a_statement_waits_until_another_transaction_ends(file: Path, writer: sqlite3.Connection) -> None:
    waiting = patient(file, 30)
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        waiting.execute("INSERT INTO word VALUES ('second')")

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait(10)
    assert words(file) == []
    writer.execute("COMMIT")
    thread.join(30)

    assert words(file) == ["first", "second"]


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_a_statement_gives_up_after_its_time(file: Path, writer: sqlite3.Connection, timeout_s: float) -> None:
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        patient(file, timeout_s).execute("BEGIN IMMEDIATE")


def test_any_other_error_is_raised_at_once(file: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        patient(file, 10**9).execute("SELECT * FROM nowhere")


def test_every_connection_of_the_store_is_patient(file: Path) -> None:
    engine = SQLite(driver_url(f"sqlite:///{file}"), "c").engine("client", 1, 3.0)

    with engine.connect() as conn:
        driver = conn.connection.driver_connection

    assert isinstance(driver, PatientConnection)
    assert driver.patience_s == 3.0
    engine.dispose()
