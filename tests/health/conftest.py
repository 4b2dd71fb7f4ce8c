"""Banks for the tests with real workers."""

from __future__ import annotations

from tests.celery.conftest import end_in_order_when_terminated, new_bank, pytest_runtest_makereport

__all__ = ["end_in_order_when_terminated", "new_bank", "pytest_runtest_makereport"]
