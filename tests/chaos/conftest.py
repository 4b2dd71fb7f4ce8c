"""Stages for the chaos tests. One seed decides which fault hits whom and when; it is printed with every run."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from entitycelery import EntityCelery
from tests.celery.conftest import end_in_order_when_terminated, pytest_runtest_makereport  # noqa: F401
from tests.chaos.ledger import declare
from tests.chaos.servers import OwnRabbitMQ, OwnRedis
from tests.chaos.stages import Stage

SEED_VARIABLE = "ENTITY_CHAOS_SEED"
SEED = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))

OpenStage = Callable[..., "Play"]


class Play:
    """A stage, and the app of the test process, which looks at the store and takes no part."""

    def __init__(self, stage: Stage, conf: dict[str, Any]) -> None:
        self.stage = stage
        self.app = Celery("chaos-looker", set_as_current=False)
        self.app.conf.update(conf)
        self.entities = EntityCelery(self.app)
        self._ledger = declare(self.entities)

    def ledger(self, name: str) -> Any:
        return self._ledger.ref(name)

    def close(self) -> None:
        self.stage.close()
        self.entities.close()
        self.app.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.line(f"chaos seed: {SEED} (again with {SEED_VARIABLE}={SEED})")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This test's own seed: another test more or less changes nothing for it."""
    print(f"{SEED_VARIABLE}={SEED}")
    return random.Random(f"{SEED}/{request.node.name}").randrange(2**31)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def open_stage(tmp_path: Path, seed: int) -> Iterator[OpenStage]:
    """Opens a stage on a store and a broker: `open_stage(database_url, broker_url, workers=1)`."""
    with ExitStack() as stack:

        def open_one(database_url: str, broker_url: str | None, how: dict[str, Any] | None = None, **conf: Any) -> Play:
            cluster = f"t_{uuid4().hex[:10]}"
            settings: dict[str, Any] = {
                "entity_cluster": cluster,
                "entity_database_url": database_url,
                "entity_auto_migrate": True,
                "entity_shards_per_group": 8,
                "broker_connection_retry_on_startup": True,
                **({"broker_url": broker_url} if broker_url else {}),
                **conf,
            }
            play = Play(Stage(tmp_path / "stage", settings, seed), settings)
            stack.callback(play.close)
            play.stage.open(**(how or {}))
            return play

        yield open_one


@pytest.fixture
def own_rabbitmq(tmp_path: Path) -> Iterator[OwnRabbitMQ]:
    server = OwnRabbitMQ(tmp_path / "rabbitmq")
    try:
        server.start()
        yield server
    finally:
        server.stop()
