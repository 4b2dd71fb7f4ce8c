"""Banks for the tests with real workers; a failing test shows what the workers said."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.celery import workers
from tests.celery.banks import Bank, open_bank
from tests.services import Services

OpenBank = Callable[..., Bank]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for worker in workers.started:
            report.sections.append((f"worker {worker.name}", worker.log_tail()))


@pytest.fixture(scope="session", autouse=True)
def end_in_order_when_terminated() -> Iterator[None]:
    """SIGTERM, as from `timeout`, ends the run by way of its fixtures: no worker and no database is left behind."""

    def leave(number: int, _frame: object) -> None:
        pytest.exit(f"ended by {signal.Signals(number).name}", returncode=128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def new_bank(services: Services, tmp_path: Path) -> Iterator[OpenBank]:
    """Opens banks for one test: `new_bank("redis", entity_batch_size=5)`."""
    with ExitStack() as stack:
        count = 0

        def open_one(broker: str, **conf: Any) -> Bank:
            nonlocal count
            count += 1
            return stack.enter_context(open_bank(services, tmp_path / f"bank{count}", broker, **conf))

        yield open_one
