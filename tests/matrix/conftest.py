"""Banks and workers as in tests/celery."""

from __future__ import annotations

from tests.celery.conftest import end_in_order_when_terminated, new_bank, pytest_runtest_makereport  # noqa: F401
