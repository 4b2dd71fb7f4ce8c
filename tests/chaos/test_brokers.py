"""The broker is killed, emptied, frozen and out of reach: nothing is lost or doubled, and the service resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import OpenStage
from tests.chaos.servers import OwnRabbitMQ, OwnRedis
from tests.waiting import eventually

WHILE_FRESH_S = 5.0
REFRESH_S = 0.5
# What some sends may take together while the broker does not answer.
SEND_S = 5.0


@pytest.mark.chaos
def test_service_resumes_after_redis_was_flushed_and_restarted(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis
) -> None:
    play = open_stage(postgres_url, own_redis.url)

    for _ in range(3):
        own_redis.flush()
        play.stage.play(0.5)
    for _ in range(3):
        own_redis.stop()
        own_redis.start()
        play.stage.await_answers(200)

    play.stage.verdict(play.entities)


@pytest.mark.chaos
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_drains_that_waited_for_a_slot_when_the_broker_went_do_not_stop_the_service(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis, tmp_path: Path, pool: str
) -> None:
    play = open_stage(postgres_url, own_redis.url, {"workers": 1, "slots": 1, "clients": 0, "pool": pool})
    occupied = tmp_path / "occupied"
    play.app.send_task("chaos.occupy", [str(occupied)])
    eventually(occupied.exists)
    waiting = play.ledger("a").append.send("behind the task")
    play.stage.play(1.5)

    own_redis.stop()
    own_redis.start()
    eventually(lambda: play.stage.workers[0].log().count("Connected to redis") >= 2)
    occupied.unlink()

    assert waiting.result(timeout_s=20) == 0


@pytest.mark.chaos
def test_a_sender_does_not_hang_with_a_broker_that_hangs(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis
) -> None:
    play = open_stage(postgres_url, own_redis.url, {"workers": 1, "clients": 0}, entity_refresh_interval_s=REFRESH_S)
    ledger = play.ledger("sent")
    ledger.append.ask("before")

    own_redis.freeze()
    waits_s = [seconds_of(lambda: ledger.append.send("meanwhile")) for _ in range(20)]
    own_redis.thaw()

    eventually(lambda: play.entities.state(ledger).entries == ["before", *["meanwhile"] * 20])
    assert sum(waits_s) < SEND_S


@pytest.mark.chaos_long
@pytest.mark.parametrize(("broker", "how"), [("redis", "refuses"), ("redis", "hangs"), ("rabbitmq", "refuses")])
def test_nothing_but_time_is_lost_while_a_broker_is_out_of_reach_for_half_a_minute(
    open_stage: OpenStage, postgres_url: str, request: pytest.FixtureRequest, broker: str, how: str
) -> None:
    server: Any = request.getfixturevalue(f"own_{broker}")
    play = open_stage(postgres_url, server.url)
    sender = play.ledger("sender")

    server.stop() if how == "refuses" else server.freeze()
    began_s = time.monotonic()
    waits_s = [seconds_of(lambda: sender.append.send("without a broker")) for _ in range(5)]
    play.stage.play(30.0 - (time.monotonic() - began_s))
    server.start() if how == "refuses" else server.thaw()
    back_s = time.monotonic()
    # Celery's own pause between two tries to connect has grown to ten seconds by then.
    play.stage.await_answers(300, within_s=60)

    print(f"sends took {waits_s}, answers again after {time.monotonic() - back_s:.1f} s")
    eventually(lambda: play.entities.state(sender).entries == ["without a broker"] * 5)
    play.stage.verdict(play.entities)
    assert sum(waits_s) < SEND_S


@pytest.mark.chaos
def test_every_wakeup_may_be_dropped_and_mail_only_waits_longer(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis
) -> None:
    play = open_stage(
        postgres_url,
        own_redis.url,
        entity_refresh_interval_s=REFRESH_S,
        broker_transport="tests.chaos.lossy:Transport",
    )

    # A shard that was taken just now is looked at often.
    play.stage.play(WHILE_FRESH_S)
    play.stage.await_answers(30)

    asks = [op for op in play.stage.verdict(play.entities) if op.kind == "ask" and op.outcome == "ok"]
    settled_s = min(op.invoked_s for op in asks) + WHILE_FRESH_S
    waits_s = sorted(op.returned_s - op.invoked_s for op in asks if op.invoked_s > settled_s)
    # Only the sweep rang.
    assert waits_s[len(waits_s) // 2] > REFRESH_S / 4


@pytest.mark.chaos_long
@pytest.mark.timeout(300)
def test_service_resumes_after_rabbitmq_was_emptied_and_killed(
    open_stage: OpenStage, postgres_url: str, own_rabbitmq: OwnRabbitMQ
) -> None:
    play = open_stage(postgres_url, own_rabbitmq.url)

    own_rabbitmq.flush()
    play.stage.await_answers(200)
    own_rabbitmq.stop()
    play.stage.play(2.0)
    own_rabbitmq.start()
    play.stage.await_answers(200)

    play.stage.verdict(play.entities)


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began_s = time.monotonic()
    call()
    return time.monotonic() - began_s
