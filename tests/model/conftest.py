"""Every kind of store, as in the tests of the storage."""

from __future__ import annotations

import pytest

from tests.storage.conftest import any_url, execute, storage_database
from tests.storage.conftest import postgres_url as emptied_afterwards

__all__ = ["any_url", "emptied_afterwards", "postgres_url", "storage_database"]


@pytest.fixture
def postgres_url(emptied_afterwards: str) -> str:
    """An empty PostgreSQL database."""
    # Looking at whole tables is no hot path: what a compiler would spend on it is most of the time.
    execute(
        emptied_afterwards, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET jit = off', current_database()); END $$"
    )
    return emptied_afterwards
