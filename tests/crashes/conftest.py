"""A failing test shows what the workers said."""

from tests.celery.conftest import end_in_order_when_terminated, pytest_runtest_makereport

__all__ = ["end_in_order_when_terminated", "pytest_runtest_makereport"]
