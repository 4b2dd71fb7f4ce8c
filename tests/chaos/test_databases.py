"""PostgreSQL loses sessions, restarts, refuses writes: the history holds, and the service resumes by itself."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from entitycelery.exceptions import SendTimeout, StoreUnavailable
from tests.chaos.conftest import OpenStage
from tests.chaos.faults import end_sessions, strike
from tests.chaos.servers import OwnRedis, execute, own_postgres, small_filesystem
from tests.chaos.stages import Stage
from tests.embedded_postgres import EmbeddedPostgres
from tests.services import fresh_postgres_database
from tests.storage.support import make_store
from tests.waiting import eventually

FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[tuple[EmbeddedPostgres, str]]:
    server, url = own_postgres()
    yield server, url
    server.stop()


@pytest.fixture
def server(postgres_server: tuple[EmbeddedPostgres, str]) -> EmbeddedPostgres:
    return postgres_server[0]


@pytest.fixture
def database(postgres_server: tuple[EmbeddedPostgres, str]) -> Iterator[str]:
    """A fresh database on the server of our own."""
    with fresh_postgres_database(postgres_server[1]) as url:
        yield url


@pytest.mark.chaos
def test_history_holds_while_sessions_are_ended_at_random(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis
) -> None:
    play = open_stage(postgres_url, own_redis.url)

    strike(play.stage, [end_sessions(postgres_url, 0.3), end_sessions(postgres_url, 1.0)], times=16, pause_s=(0.1, 0.6))

    play.stage.await_answers(100)
    play.stage.verdict(play.entities)


@pytest.mark.chaos
def test_service_resumes_after_postgres_restarted(
    open_stage: OpenStage, server: EmbeddedPostgres, database: str, own_redis: OwnRedis
) -> None:
    play = open_stage(database, own_redis.url)

    for how in (FAST, IMMEDIATE):
        play.stage.play(2.0)
        before, back_s = restart(play.stage, server, how, before_s=2.0)
        # `make chaos` asks for 95 %; here other tests may want the machine too.
        await_rate(play.stage, back_s, 0.5 * before)

    play.stage.verdict(play.entities)


def await_rate(stage: Stage, since_s: float, rate: float) -> None:
    eventually(lambda: stage.rates().back_after_s(since_s, rate=rate, within_s=20) is not None, timeout_s=40)


def restart(
    stage: Stage, server: EmbeddedPostgres, how: signal.Signals, *, before_s: float, away_s: float = 0.0
) -> tuple[float, float]:
    """Restart the server under load; asks per second before that, and when it was back."""
    gone_s = time.monotonic()
    before = stage.rates().between(gone_s - before_s, gone_s)
    server.halt(how)
    stage.play(away_s)
    server.launch()
    back_s = time.monotonic()
    print(f"{how.name}: away for {back_s - gone_s:.1f} s, {before:.0f} asks/s before")
    return before, back_s


@pytest.mark.chaos
def test_service_resumes_after_postgres_refused_every_write(
    open_stage: OpenStage, postgres_server: tuple[EmbeddedPostgres, str], database: str, own_redis: OwnRedis
) -> None:
    play = open_stage(database, own_redis.url)

    for setting in ("on", "off"):
        execute(postgres_server[1], f"ALTER SYSTEM SET default_transaction_read_only = {setting}")
        execute(postgres_server[1], "SELECT pg_reload_conf()")
        if setting == "on":
            # All clients may wait for an answer just then; so one more sends.
            eventually(lambda: execute(database, "SHOW default_transaction_read_only") == [("on",)])
            with pytest.raises(SendTimeout, match="read-only"):
                play.ledger("refused").append.send("never")
        play.stage.play(4.0)

    play.stage.await_answers(200)
    play.stage.verdict(play.entities)


@pytest.mark.chaos_long
def test_service_resumes_after_the_disk_was_full(open_stage: OpenStage, own_redis: OwnRedis) -> None:
    with small_filesystem(megabytes=200) as home:
        server, url = own_postgres(home)
        try:
            play = open_stage(url, own_redis.url)
            ballast = home / "ballast"

            for _ in range(3):
                fill(ballast)
                play.stage.play(5.0)
                ballast.unlink()
                eventually(lambda: server.is_running() or server.launch())
                play.stage.await_answers(200)

            history = play.stage.verdict(play.entities)
            assert any(op.outcome == "unknown" for op in history), "the disk was never full"
        finally:
            server.stop()


@pytest.mark.chaos_long
def test_service_resumes_after_the_disk_of_sqlite_was_full(open_stage: OpenStage, own_redis: OwnRedis) -> None:
    with small_filesystem(megabytes=100) as home:
        play = open_stage(f"sqlite:///{home / 'store.db'}", own_redis.url)
        ballast = home / "ballast"

        for _ in range(3):
            fill(ballast)
            play.stage.play(5.0)
            ballast.unlink()
            play.stage.await_answers(200)

        history = play.stage.verdict(play.entities)
        assert any("full" in str(op.error) for op in history), "the disk was never full"


def fill(ballast: Path) -> None:
    """Leave no byte free where this file is."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


@pytest.mark.chaos_long
@pytest.mark.parametrize("how", [FAST, IMMEDIATE], ids=["fast", "immediate"])
@pytest.mark.parametrize("away_s", [0.0, 5.0, 20.0])
def test_throughput_is_back_ten_seconds_after_postgres(
    open_stage: OpenStage,
    server: EmbeddedPostgres,
    database: str,
    own_redis: OwnRedis,
    how: signal.Signals,
    away_s: float,
) -> None:
    play = open_stage(database, own_redis.url)
    play.stage.play(10.0)

    before, back_s = restart(play.stage, server, how, away_s=away_s, before_s=8.0)
    play.stage.play(14.0)

    assert play.stage.rates().back_after_s(back_s, rate=0.95 * before, within_s=10.0) is not None
    play.stage.verdict(play.entities)


@pytest.mark.chaos
def test_a_long_turn_whose_session_is_ended_again_and_again_is_no_crash(
    open_stage: OpenStage, postgres_url: str, own_redis: OwnRedis, tmp_path: Path
) -> None:
    play = open_stage(
        postgres_url, own_redis.url, {"workers": 1, "clients": 0}, entity_refresh_interval_s=0.2, entity_max_crashes=3
    )
    began, may_end = tmp_path / "began", tmp_path / "may-end"
    sent = play.ledger("long").append_when.send("long", str(began), str(may_end))

    for attempt in range(1, 6):
        eventually(lambda attempts=attempt: began.stat().st_size >= attempts)
        play.stage.end_sessions(postgres_url, 1.0)
    may_end.touch()

    assert sent.result(timeout_s=30) == 0


@pytest.mark.chaos
def test_processes_that_open_a_new_sqlite_file_at_once_wait_for_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(4), context.Queue()
    openers = [context.Process(target=open_files, args=(tmp_path, 300, barrier, failures)) for _ in range(4)]

    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()

    assert [opener.exitcode for opener in openers] == [0] * 4
    assert failures.empty()


def open_files(folder: Path, count: int, barrier: Barrier, failures: Queue[str]) -> None:
    """Open and upgrade one new store after the other, each at the same moment as the other processes."""
    for number in range(count):
        barrier.wait(60)
        store = make_store(f"sqlite:///{folder / str(number)}.db")
        try:
            store.schema.upgrade()
        except StoreUnavailable as exc:
            failures.put(str(exc))
        store.close()
