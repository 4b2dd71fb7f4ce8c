"""While no worker runs, senders do not fill the broker with wake-ups."""

from __future__ import annotations

from pathlib import Path

import pytest

from entitycelery.address import ShardId, queue_name
from tests.celery.banks import open_bank
from tests.services import Services

MANY = 100


@pytest.mark.parametrize("broker", ["redis", "folder"])
def test_wake_ups_that_nobody_consumes_are_bounded(services: Services, tmp_path: Path, broker: str) -> None:
    with open_bank(services, tmp_path / "bank", broker, entity_shards_per_group=1) as bank:
        for _ in range(MANY):
            bank.Account.ref("alice").deposit.send(1)

        with bank.app.connection_for_read() as connection:
            name = queue_name(bank.entities.settings.cluster, ShardId("default", 0))
            waiting = connection.default_channel.queue_declare(name, passive=True).message_count

        assert 0 < waiting <= 32
        bank.worker()
        assert bank.Account.ref("alice").deposit.ask(1) == MANY + 1
