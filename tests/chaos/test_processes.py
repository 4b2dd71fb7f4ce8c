"""Processes are killed and frozen under load: the history holds, and the service goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from entitycelery.transports.folder import configure
from tests.chaos.conftest import OpenStage
from tests.chaos.faults import (
    FREEZES,
    KILLS,
    Fault,
    end_sessions,
    freeze_parent,
    kill_runner_process,
    kill_worker,
    strike,
)
from tests.chaos.servers import OwnRedis


@pytest.mark.chaos
def test_history_holds_while_processes_are_killed_and_frozen(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis
) -> None:
    play = open_stage(postgres_url, own_redis.url)

    strike(play.stage, [*KILLS, *FREEZES], times=9)

    play.stage.await_answers(100)
    play.stage.verdict(play.entities)


@pytest.mark.chaos_long
@pytest.mark.parametrize("fault", [*KILLS, *FREEZES], ids=lambda fault: fault.__name__)
def test_history_holds_under_one_fault_again_and_again(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis, fault: Fault
) -> None:
    play = open_stage(postgres_url, own_redis.url)

    strike(play.stage, [fault], times=12)

    play.stage.await_answers(100)
    play.stage.verdict(play.entities)


@pytest.mark.chaos_long
@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_history_holds_on_other_pools(open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis, pool: str) -> None:
    play = open_stage(postgres_url, own_redis.url, {"pool": pool})
    sessions = [end_sessions(postgres_url, 0.3), end_sessions(postgres_url, 1.0)]

    strike(play.stage, [kill_runner_process, kill_worker, freeze_parent, *sessions], times=10)

    play.stage.await_answers(100)
    play.stage.verdict(play.entities)


@pytest.mark.chaos_long
def test_history_holds_without_any_server(open_stage: OpenStage, tmp_path: Path) -> None:
    folder = configure({}, tmp_path / "broker")
    play = open_stage(f"sqlite:///{tmp_path / 'entities.db'}", str(folder.pop("broker_url")), **folder)

    strike(play.stage, [*KILLS, *FREEZES], times=18)

    play.stage.await_answers(50)
    play.stage.verdict(play.entities)
